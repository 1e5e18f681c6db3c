//! A whole training script by hand: LayerNorm tuning of a language model.
//!
//! `cargo run --example finetune` trains a tiny model on prose and tunes it to code.
//! `cargo run --release --example finetune -- MODEL_DIR TEXT_FILE` tunes a model from Hugging Face.
//! `ln-tuning train` does more from a YAML file: checkpoints, packed documents, chat templates, classifiers.

mod tiny;

use anyhow::{anyhow, bail, ensure, Result};
use indicatif::{ProgressBar, ProgressStyle};
use ln_tuning::device::best_device;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, Inputs, Model};
use ln_tuning::{AdamW, Decay, LnTuningConfig, LnTuningModel, Schedule, TaskType};
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};
use tokenizers::Tokenizer;

const LENGTH: i64 = 64; // tokens in a row
const BATCH: i64 = 8; // rows in a step
const EPOCHS: i64 = 4;
const LR: f64 = 1e-2; // ten times what full fine-tuning takes, or more
const OUT: &str = "target/finetune/adapter";

fn main() -> Result<()> {
    let device = best_device();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (vs, model, tokens) = match args.as_slice() {
        [] => {
            let (vs, model) = tiny::decoder(include_str!("../README.md"), device)?;
            (vs, model, tiny::tokens(include_str!("finetune.rs")))
        }
        [dir, file] => open(dir, file, device)?,
        _ => bail!("expected no argument, or MODEL_DIR TEXT_FILE"),
    };

    // The data: rows of equal length; the last tenth is for evaluation. Labels stay on the CPU.
    let rows = tokens.len() as i64 / LENGTH;
    ensure!(rows >= 10, "{} tokens, expected at least {}", tokens.len(), 10 * LENGTH);
    let rows = Tensor::from_slice(&tokens).narrow(0, 0, rows * LENGTH).view([-1, LENGTH]);
    let held_out = (rows.size()[0] / 10).max(1);
    let train = rows.narrow(0, 0, rows.size()[0] - held_out);
    let eval = rows.narrow(0, train.size()[0], held_out);

    // The adapter and its optimiser.
    let config = LnTuningConfig::default().task_type(TaskType::CausalLm);
    let tuned = LnTuningModel::new(&vs, config)?;
    println!("{}", tuned.trainable_parameters());
    let mut opt = tuned.optimizer(AdamW::default(), LR)?;
    let steps = EPOCHS * ((train.size()[0] + BATCH - 1) / BATCH);
    let schedule = Schedule::new(Decay::Cosine, steps as u64 / 10, steps as u64);
    let cross_entropy = LinearCrossEntropy::default();

    println!("evaluation loss before {:.3}", evaluate(&model, &eval, device)?);
    let style = "{bar:30} {pos}/{len} steps, {eta} left {msg}";
    let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(style)?);
    for _ in 0..EPOCHS {
        let order = Tensor::randperm(train.size()[0], (Kind::Int64, Device::Cpu));
        for chosen in order.split(BATCH, 0) {
            let labels = train.index_select(0, &chosen);
            let ids = labels.to_device(device);
            opt.set_lr(LR * schedule.factor(bar.position()))?;
            let loss = model.loss(Inputs::new(&ids).train(true), &labels, &cross_entropy)?;
            opt.backward_step_clip_norm(&loss, 1.)?;
            bar.inc(1);
            if bar.position().is_multiple_of(10) {
                // Reading the loss waits for the device: now and then is enough.
                bar.set_message(format!("loss {:.3}", loss.double_value(&[])));
            }
        }
    }
    bar.finish();
    println!("evaluation loss after {:.3}", evaluate(&model, &eval, device)?);
    tuned.save_pretrained(OUT)?;
    println!("The adapter is in {OUT}.");
    Ok(())
}

/// A model directory of transformers, and the tokens of a text file.
fn open(dir: &str, file: &str, device: Device) -> Result<(VarStore, Decoder, Vec<i64>)> {
    let (vs, model) = Decoder::from_pretrained(dir, device, None)?;
    let failed = |error| anyhow!("{dir}/tokenizer.json: {error}");
    let mut tokenizer = Tokenizer::from_file(format!("{dir}/tokenizer.json")).map_err(failed)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(failed)?;
    let text = std::fs::read_to_string(file)?;
    let encoding = tokenizer.encode(text, true).map_err(failed)?;
    Ok((vs, model, encoding.get_ids().iter().map(|id| i64::from(*id)).collect()))
}

/// The mean loss of next tokens.
fn evaluate(model: &Decoder, rows: &Tensor, device: Device) -> Result<f64> {
    let mut sum = 0.;
    for labels in rows.split(BATCH, 0) {
        let ids = labels.to_device(device);
        let loss = no_grad(|| model.loss(&ids, &labels, &LinearCrossEntropy::default()))?;
        sum += loss.double_value(&[]) * labels.size()[0] as f64;
    }
    Ok(sum / rows.size()[0] as f64)
}
