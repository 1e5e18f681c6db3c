//! Language models: plain text, prompts with completions, or chats.

mod alpaca;
mod batch;
pub mod columns;
mod corpus;
pub mod document;
pub mod encoder;
mod features;
mod image_tokens;
pub mod mentions;
pub mod model;
mod packing;
pub mod pictures;
pub mod settings;
mod shape;
pub mod sizes;
mod stages;
mod takes;
mod task;
mod turns;
pub mod vision;

use std::path::{Path, PathBuf};

use anyhow::{ensure, Result};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{Selection, TaskType};

use crate::text::files::TextFiles;
use crate::train::settings::{RunSettings, Settings};
use crate::train::shift::{Asked, Shift};
use crate::train::start::{start, Mode};
use corpus::Corpus;
use encoder::TextEncoder;
use model::{is_of_pictures, LanguageModel};
use settings::LanguageData;
use task::LanguageTask;

/// Every setting, explained.
pub const SAMPLE: &str = include_str!("sample.yaml");

/// The loss over the scale of what an adapter learned.
pub fn shift(mut run: RunSettings<LanguageData>, asked: &Asked) -> Result<Shift> {
    // The adapter may change the tower from scale to scale.
    run.data.features_mb = None;
    let (settings, run) = (&run.common, &run);
    let device = settings.device()?;
    let files = ModelFiles::open(&settings.model)?;
    let words = TextFiles::of(&files)?;
    let encoder = encoder(&files, &words, &run.data)?;
    let rows = Corpus::open(run.files.train()?, &encoder, run)?;
    let (vs, model) = LanguageModel::open(files, settings, device)?;
    model.check_ids(rows.largest_id())?;
    let task = LanguageTask::new(&model, device, encoder, rows, None, words, run);
    Shift::of(&task, &vs, asked, settings)
}

/// Finds what is wrong with a stage before those in front of it train: its modules and, if `rows` says so, its data.
pub fn check(run: &RunSettings<LanguageData>, rows: bool) -> Result<()> {
    let settings = &run.common;
    let files = ModelFiles::open(&settings.model)?;
    chosen(&files, settings)?;
    if rows {
        let encoder = encoder(&files, &TextFiles::of(&files)?, &run.data)?;
        let open = |path: &_| Corpus::open(path, &encoder, run);
        run.files.open(settings.seed, open, Corpus::split)?;
    }
    Ok(())
}

/// The modules that train.
fn chosen(files: &ModelFiles, settings: &Settings) -> Result<Selection> {
    let (variables, config) = (files.variables_with_copies(), settings.adapter()?);
    let chosen = Selection::new(&variables, &config, files.model_type(), settings.norms)?;
    Ok(match settings.layers {
        Some(layers) => chosen.in_layers(&variables, &config, layers)?,
        None => chosen,
    })
}

/// Trains, on the base with the adapters of `before` in it.
pub fn train(run: &RunSettings<LanguageData>, mode: Mode, before: &[PathBuf]) -> Result<()> {
    let settings = &run.common;
    let device = settings.device()?;
    // Before the model is loaded: bad lines are found first.
    let files = ModelFiles::open(&settings.model)?;
    let words = TextFiles::of(&files)?;
    let encoder = encoder(&files, &words, &run.data)?;
    let open = |path: &_| Corpus::open(path, &encoder, run);
    let (mut train, eval) = run.files.open(settings.seed, open, Corpus::split)?;
    if encoder.vision.is_some() && chosen(&files, settings)?.variables().all(is_of_pictures) {
        train = train.with_pictures()?;
    }
    let (vs, model) = LanguageModel::open(files, settings, device)?;
    model.check_ids(train.largest_id().max(eval.as_ref().and_then(Corpus::largest_id)))?;
    stages::carry(&vs, before)?;
    let mut config = settings.adapter()?;
    config.task_type = config.task_type.or(Some(TaskType::CausalLm));
    let task = LanguageTask::new(&model, device, encoder, train, eval, words, run);
    start(&task, &vs, config, run, mode)
}

/// Writes all that the adapters of some stages trained as one adapter; of what several trained, the last counts.
pub fn combine(run: &RunSettings<LanguageData>, adapters: &[PathBuf], out: &Path) -> Result<()> {
    stages::combine(&run.common, adapters, out)?;
    println!("the adapter of all stages is in '{}'", out.display());
    Ok(())
}

fn encoder(files: &ModelFiles, words: &TextFiles, data: &LanguageData) -> Result<TextEncoder> {
    let encoder = TextEncoder::open(files, words, data.append_eos, data.loss_on)?;
    ensure!(
        encoder.packs() || data.packing != Some(true),
        "'data.packing' is true, and a {} takes no several documents in a row: set data.packing=false",
        files.model_type().unwrap_or_default()
    );
    Ok(encoder)
}
