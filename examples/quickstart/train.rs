//! One training loop for every way of training.

use std::f64::consts::PI;
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use ln_tuning::models::{Inputs, Model, ViTForImageClassification};
use tch::{no_grad, Kind, Tensor};

use crate::data::{Digits, Set};

/// The outcome of a run.
pub struct Run {
    pub name: &'static str,
    pub trainable: u64,
    pub accuracy: f64,
    pub seconds: f64,
    /// (step, accuracy on the test set)
    pub accuracies: Vec<(f64, f64)>,
    /// (step, mean training loss of the epoch)
    pub losses: Vec<(f64, f64)>,
}

pub struct Plan {
    pub name: &'static str,
    pub trainable: u64,
    pub epochs: usize,
    pub lr: f64,
}

const BATCH: i64 = 32;

/// Trains over `epochs`, the learning rate falling from `lr` to 0 along a cosine. `step` makes one update from a loss.
pub fn train(
    plan: Plan,
    model: &ViTForImageClassification,
    digits: &Digits,
    mut step: impl FnMut(&Tensor, f64) -> Result<()>,
) -> Result<Run> {
    let start = Instant::now();
    let per_epoch = (digits.train.len() + BATCH - 1) / BATCH;
    let total = per_epoch * plan.epochs as i64;
    let bar = ProgressBar::new(total as u64)
        .with_style(ProgressStyle::with_template("{prefix:>22} {bar:30} {pos}/{len} {msg} {eta}")?);
    bar.set_prefix(plan.name);
    let mut run = Run {
        name: plan.name,
        trainable: plan.trainable,
        accuracy: accuracy(model, &digits.test)?,
        seconds: 0.,
        accuracies: Vec::new(),
        losses: Vec::new(),
    };
    run.accuracies.push((0., run.accuracy));
    let mut done = 0;
    for _ in 0..plan.epochs {
        let mut sum = Tensor::zeros([], (Kind::Float, digits.train.labels.device()));
        for batch in digits.train.shuffled(BATCH) {
            let lr = plan.lr * 0.5 * (1. + (PI * done as f64 / total as f64).cos());
            let logits = model.logits(Inputs::images(&batch.images).train(true))?;
            let loss = logits.cross_entropy_for_logits(&batch.labels);
            step(&loss, lr)?;
            sum += loss.detach();
            done += 1;
            bar.inc(1);
        }
        run.accuracy = accuracy(model, &digits.test)?;
        let loss = sum.double_value(&[]) / per_epoch as f64;
        run.accuracies.push((done as f64, run.accuracy));
        run.losses.push((done as f64, loss));
        bar.set_message(format!("loss {loss:.3} accuracy {:.3}", run.accuracy));
    }
    bar.finish();
    run.seconds = start.elapsed().as_secs_f64();
    Ok(run)
}

pub fn accuracy(model: &ViTForImageClassification, set: &Set) -> Result<f64> {
    let logits = no_grad(|| model.logits(&set.images))?;
    let right = logits.argmax(-1, false).eq_tensor(&set.labels).sum(Kind::Int64).int64_value(&[]);
    Ok(right as f64 / set.len() as f64)
}
