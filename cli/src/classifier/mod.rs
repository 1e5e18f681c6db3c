//! Classifiers of texts, pairs of texts, or images. The head trains beside the norms and is in the adapter, as PEFT
//! does it.

mod folder;
mod labels;
mod model;
mod problem;
mod rows;
mod scores;
pub mod settings;
mod task;
mod texts;

use anyhow::Result;
use ln_tuning::pretrained::ModelFiles;

use crate::train::settings::RunSettings;
use crate::train::shift::{Asked, Shift};
use crate::train::start::{start, Mode};
use labels::Labels;
use model::Classifier;
use rows::Rows;
use settings::ClassifierData;
use task::ClassifierTask;

/// Every setting, explained.
pub const SAMPLE: &str = include_str!("sample.yaml");

/// The loss over the scale of what an adapter learned. Labels are those that the adapter was trained for.
pub fn shift(run: &RunSettings<ClassifierData>, asked: &Asked) -> Result<Shift> {
    let settings = &run.common;
    let device = settings.device(&run.ranks)?;
    let rows = Rows::open(run.files.train()?, run)?;
    let files = ModelFiles::open(&settings.model)?;
    let new = asked.saved.new_head(ModelFiles::open(&settings.model)?)?;
    let labels = Labels::of_adapter(&rows, &files, new.as_ref(), asked.adapter, &run.data)?;
    let images = rows.are_images();
    let (vs, model) = Classifier::open(files, &labels, images, settings, device)?;
    let task = ClassifierTask::new(&model, device, rows, None, labels, run)?;
    Shift::of(&task, &vs, asked, settings)
}

/// Trains, and says whether the run is at its end.
pub fn train(run: &RunSettings<ClassifierData>, mode: Mode) -> Result<bool> {
    let settings = &run.common;
    let device = settings.device(&run.ranks)?;
    // Before the model is loaded: bad rows are found first.
    let open = |path: &_| Rows::open(path, run);
    let (train, eval) = run.files.open(settings.seed, open, Rows::split)?;
    let files = ModelFiles::open(&settings.model)?;
    let labels = Labels::of(&train, eval.as_ref(), &files, &run.data)?;
    let images = train.are_images();
    // Bad rows are said once, and nobody waits for whoever has none.
    run.ranks.agree(Ok(()))?;
    let (vs, model) = Classifier::open(files, &labels, images, settings, device)?;
    let config = model.adapter(settings.adapter()?);
    let task = ClassifierTask::new(&model, device, train, eval, labels, run)?;
    start(&task, &vs, config, run, mode)
}
