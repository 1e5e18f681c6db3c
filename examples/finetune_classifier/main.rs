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

use anyhow::{Context, Result};
use finetune::{cli, interrupt, order, trainer};
use ln_tuning::LnTuningModel;

use classifier::Classifier;
use labels::Labels;
use rows::Rows;
use settings::ClassifierSettings;
use task::ClassifierTask;

fn main() -> Result<()> {
    let about = "Fine-tune a classifier of texts or images by LayerNorm tuning.";
    let Some(settings) = cli::settings::<ClassifierSettings>(about)? else {
        return Ok(());
    };
    settings.check()?;
    let common = &settings.common;
    interrupt::listen()?;
    if let Some(threads) = common.threads {
        tch::set_num_threads(threads);
    }
    let device = common.device()?;
    let data = &settings.data;
    let train = Rows::open(data.common.train()?, data)?;
    let (train, eval) = match &data.common.eval {
        Some(path) => (train, Some(Rows::open(path, data)?)),
        None if data.common.eval_fraction > 0. => {
            let (eval, train) = train.split(data.common.eval_fraction, common.seed);
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
