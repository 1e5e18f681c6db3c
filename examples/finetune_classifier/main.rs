//! Fine-tunes a classifier by LayerNorm tuning, from a YAML file: texts, pairs of texts, or images.
//!
//! `cargo run --release --example finetune_classifier -- --config clf.yaml [--set key=value …]`. Every setting is
//! explained in `examples/finetune_classifier/sample.yaml`. The head trains beside the norms and is in the adapter, as
//! PEFT does it.

#[path = "../finetune/mod.rs"]
mod finetune;

mod classifier;
mod images;
mod labels;
mod rows;
mod scores;
mod settings;
mod task;
mod texts;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use finetune::{interrupt, order, trainer, yaml};
use ln_tuning::LnTuningModel;

use classifier::Classifier;
use labels::Labels;
use rows::Rows;
use settings::ClassifierSettings;
use task::ClassifierTask;

/// Fine-tune a classifier of texts or images by LayerNorm tuning.
#[derive(Parser)]
struct Args {
    /// The settings; examples/finetune_classifier/sample.yaml explains them all
    #[arg(long)]
    config: PathBuf,
    /// Sets one of them, with dots between levels: --set optimizer.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Prints all settings as they would be used, and ends
    #[arg(long)]
    show: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let settings: ClassifierSettings = yaml::read(&args.config, &args.set)?;
    if args.show {
        print!("{}", serde_yaml::to_string(&settings)?);
        return Ok(());
    }
    settings.check()?;
    let common = &settings.common;
    interrupt::listen()?;
    if let Some(threads) = common.threads {
        tch::set_num_threads(threads);
    }
    let device = common.device()?;
    let data = &settings.data;
    let train = Rows::open(data.train()?, data)?;
    let (train, eval) = match &data.eval {
        Some(path) => (train, Some(Rows::open(path, data)?)),
        None if data.eval_fraction > 0. => {
            let (eval, train) = train.split(data.eval_fraction, common.seed);
            (train, Some(eval))
        }
        None => (train, None),
    };
    let labels = Labels::of(&train, eval.as_ref(), &common.model)?;
    tch::manual_seed(order::step_seed(common.seed, u64::MAX));
    let (vs, model) =
        Classifier::open(&common.model, &labels, train.are_images(), device, common.kind(device))?;
    let config = model.adapter(common.adapter()?);
    let options = common.adapter_options(model.model_type());
    let mut tuned = LnTuningModel::with_options(&vs, config, "default", &options)?;
    let all = serde_json::to_value(&settings).context("the settings are no JSON")?;
    let task = ClassifierTask::new(&model, device, train, eval, labels, &settings)?;
    trainer::train(&task, &vs, &mut tuned, common, all)
}
