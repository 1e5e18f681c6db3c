//! Language models: plain text, prompts with completions, or chats.

mod alpaca;
pub mod answerer;
mod batch;
pub mod columns;
mod conversation;
mod corpus;
pub mod document;
pub mod encoder;
mod features;
mod image_tokens;
mod loader;
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

use anyhow::{ensure, Context, Result};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{LnTuningConfig, Selection, TaskType};
use tch::Device;

use crate::progress;
use crate::text::files::TextFiles;
use crate::train::ranks::Directory;
use crate::train::run_settings::RunSettings;
use crate::train::settings::Settings;
use crate::train::several::{self, Several, Work};
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
    let device = settings.device(&run.ranks)?;
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

/// The data of a run, read and checked.
struct Prepared {
    encoder: TextEncoder,
    words: TextFiles,
    train: Corpus,
    eval: Option<Corpus>,
}

impl Prepared {
    fn open(run: &RunSettings<LanguageData>, files: &ModelFiles) -> Result<Self> {
        let words = TextFiles::of(files)?;
        let encoder = encoder(files, &words, &run.data)?;
        let open = |path: &_| Corpus::open(path, &encoder, run);
        let (mut train, eval) = run.files.open(run.common.seed, open, Corpus::split)?;
        if encoder.vision.is_some() && chosen(files, &run.common)?.variables().all(is_of_pictures) {
            train = train.with_pictures()?;
        }
        Ok(Prepared { encoder, words, train, eval })
    }

    fn check(&self, model: &LanguageModel) -> Result<()> {
        let eval = self.eval.as_ref().and_then(Corpus::largest_id);
        model.check_ids(self.train.largest_id().max(eval))
    }

    fn task<'m>(
        self,
        model: &'m LanguageModel,
        device: Device,
        run: &RunSettings<LanguageData>,
    ) -> LanguageTask<'m> {
        let Prepared { encoder, words, train, eval } = self;
        LanguageTask::new(model, device, encoder, train, eval, words, run)
    }
}

/// The configuration of the adapters.
fn config(settings: &Settings) -> Result<LnTuningConfig> {
    let mut config = settings.adapter()?;
    config.task_type = config.task_type.or(Some(TaskType::CausalLm));
    Ok(config)
}

/// Trains, on the base with the adapters of `before` in it. True if the run is at its end.
pub fn train(run: &RunSettings<LanguageData>, mode: Mode, before: &[PathBuf]) -> Result<bool> {
    let settings = &run.common;
    let device = settings.device(&run.ranks)?;
    // Before the model is loaded: bad lines are found first.
    let files = ModelFiles::open(&settings.model)?;
    let prepared = Prepared::open(run, &files)?;
    // Bad lines are said once, and nobody waits for whoever has none.
    run.ranks.agree(Ok(()))?;
    let before: Vec<Directory> =
        before.iter().map(|dir| run.ranks.directory(dir)).collect::<Result<_>>()?;
    let (vs, model) = LanguageModel::open(files, settings, device)?;
    prepared.check(&model)?;
    stages::carry(&vs, before.iter().map(|dir| dir.path.as_path()))?;
    let task = prepared.task(&model, device, run);
    start(&task, &vs, config(settings)?, run, mode)
}

/// Trains several adapters at once, each with its settings.
pub fn train_several(several: &Several<LanguageData>, mode: Mode) -> Result<()> {
    let runs = || several.members.iter().map(|member| &member.run);
    let run = runs().next().context("there is no run")?;
    let settings = &run.common;
    let device = settings.device(&run.ranks)?;
    let files = ModelFiles::open(&settings.model)?;
    // A seed decides which documents stand in a row, and which are evaluated.
    let data = |run: &RunSettings<LanguageData>| {
        let packing = run.data.packing.unwrap_or(true);
        let seeded = packing && run.files.shuffle || run.files.eval_fraction > 0.;
        (run.all["data"].clone(), seeded.then_some(run.common.seed))
    };
    let (of, firsts) = several::alike(runs().map(data));
    let mut prepared = Vec::with_capacity(firsts.len());
    for first in &firsts {
        let member = &several.members[*first];
        prepared.push(Prepared::open(&member.run, &files).with_context(|| member.name.clone())?);
    }
    run.ranks.agree(Ok(()))?;
    let (vs, model) = LanguageModel::open(files, settings, device)?;
    prepared.iter().try_for_each(|prepared| prepared.check(&model))?;
    let prepared = prepared.into_iter().zip(&firsts);
    let task = |(prepared, first): (Prepared, &usize)| {
        prepared.task(&model, device, &several.members[*first].run)
    };
    let tasks: Vec<LanguageTask> = prepared.map(task).collect();
    let work = Work { tasks: &tasks, of: &of, first_weights: &[] };
    several::start(several, work, &vs, config(settings)?, mode)
}

/// Writes all that the adapters of some stages trained as one adapter; of what several trained, the last counts.
pub fn combine(run: &RunSettings<LanguageData>, adapters: &[PathBuf], out: &Path) -> Result<()> {
    stages::combine(&run.common, adapters, out)?;
    progress::say(format!("the adapter of all stages is in '{}'", out.display()));
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
