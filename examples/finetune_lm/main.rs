//! Fine-tunes a language model by LayerNorm tuning, from a YAML file: plain text, prompts with completions, or chats.
//!
//! `cargo run --release --example finetune_lm -- --config lm.yaml [--set key=value …]`. Every setting is explained in
//! `examples/finetune_lm/sample.yaml`. What comes out is a PEFT directory, with curves and metrics beside it.

#[path = "../finetune/mod.rs"]
mod finetune;

mod chat;
mod corpus;
mod packing;
mod records;
mod settings;
mod special;
mod task;
mod tokens;

use anyhow::{bail, Context, Result};
use finetune::{cli, interrupt, order, progress, trainer};
use ln_tuning::models::Decoder;
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{LnTuningModel, TaskType};

use corpus::Corpus;
use settings::LmSettings;
use task::LmTask;
use tokens::TextEncoder;

fn main() -> Result<()> {
    let about = "Fine-tune a language model by LayerNorm tuning.";
    let Some(settings) = cli::settings::<LmSettings>(about)? else {
        return Ok(());
    };
    settings.check()?;
    let common = &settings.common;
    interrupt::listen()?;
    if let Some(threads) = common.threads {
        tch::set_num_threads(threads);
    }
    let device = common.device()?;
    // Here rather than after the model has been loaded: bad lines are found first.
    let encoder = TextEncoder::open(&common.model, &settings.data)?;
    let data = &settings.data;
    let train = Corpus::open(data.common.train()?, &encoder, data, common.workers)?;
    let (train, eval) = match &data.common.eval {
        Some(path) => (train, Some(Corpus::open(path, &encoder, data, common.workers)?)),
        None if data.common.eval_fraction > 0. => {
            let (eval, train) = train.split(data.common.eval_fraction, common.seed);
            (train, Some(eval))
        }
        None => (train, None),
    };
    let bar = progress::bytes("loading the model", 0)?;
    let shown = bar.clone();
    let files = ModelFiles::open(&common.model)?.with_progress(move |done, total| {
        shown.set_length(total);
        shown.set_position(done);
    });
    let model_type = files.model_type().unwrap_or_default().to_owned();
    tch::manual_seed(order::step_seed(common.seed, u64::MAX));
    let (vs, model) = Decoder::from_files(&files, device, common.kind(device))?;
    bar.finish_and_clear();
    let vocabulary = model.config().vocab_size();
    let largest = train.largest_id().max(eval.as_ref().and_then(Corpus::largest_id));
    if let Some(id) = largest.filter(|id| i64::from(*id) >= vocabulary) {
        bail!("the tokenizer gives the id {id}, and the model has a vocabulary of {vocabulary}");
    }
    let mut config = common.adapter()?;
    config.task_type = config.task_type.or(Some(TaskType::CausalLm));
    let options = common.adapter_options(&model_type);
    let mut tuned = LnTuningModel::with_options(&vs, config, "default", &options)?;
    let all = serde_json::to_value(&settings).context("the settings are no JSON")?;
    let task = LmTask::new(&model, device, encoder, train, eval, &settings)?;
    trainer::train(&task, &vs, &mut tuned, common, all)
}
