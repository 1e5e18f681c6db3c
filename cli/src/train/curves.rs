//! `curves.svg`: the course of a run so far.

use std::path::Path;

use anyhow::Result;
use ln_tuning::atomic;

use super::metrics::Metrics;
use crate::chart::{panel, picture, STEPS};

/// Draws the loss, the learning rate and the gradient norm of every step, and the evaluations.
pub fn draw(out: &Path, metrics: &Metrics) -> Result<()> {
    let series = |key: &str| metrics.series(key);
    let accuracy = series("accuracy");
    let last = if accuracy.is_empty() {
        ("perplexity", series("perplexity"))
    } else {
        ("accuracy", accuracy)
    };
    let loss = [("training", series("loss")), ("evaluation", series("eval_loss"))];
    let svg = picture((960, 640), (2, 2), |panels| {
        panel(&panels[0], "loss", &loss, &STEPS)?;
        panel(&panels[1], last.0, &[("evaluation", last.1)], &STEPS)?;
        panel(&panels[2], "learning rate", &[("", series("lr"))], &STEPS)?;
        panel(&panels[3], "gradient norm", &[("", series("grad_norm"))], &STEPS)
    })?;
    Ok(atomic::write(&[(out.join("curves.svg"), svg)])?)
}
