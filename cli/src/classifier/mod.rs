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
mod written;

use anyhow::{ensure, Context, Result};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{LnTuningModel, DEFAULT_ADAPTER};

use crate::train::settings::RunSettings;
use crate::train::several::{self, Several, Weights, Work};
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

/// Trains several adapters at once, each with its settings.
pub fn train_several(several: &Several<ClassifierData>, mode: Mode) -> Result<()> {
    let runs = || several.members.iter().map(|member| &member.run);
    let first = runs().next().context("there is no run")?;
    let settings = &first.common;
    let device = settings.device(&first.ranks)?;
    let files = ModelFiles::open(&settings.model)?;
    // A seed decides which rows are evaluated.
    let data = |run: &RunSettings<ClassifierData>| {
        (run.all["data"].clone(), (run.files.eval_fraction > 0.).then_some(run.common.seed))
    };
    let (of, firsts) = several::alike(runs().map(data));
    let mut rows = Vec::with_capacity(firsts.len());
    for member in firsts.iter().map(|first| &several.members[*first]) {
        let open = |path: &_| Rows::open(path, &member.run);
        let opened = member.run.files.open(member.run.common.seed, open, Rows::split);
        rows.push(opened.with_context(|| member.name.clone())?);
    }
    let (train, eval) = &rows[0];
    let labels = Labels::of(train, eval.as_ref(), &files, &first.data)?;
    first.ranks.agree(Ok(()))?;
    let (images, names, of_model) = (train.are_images(), labels.names.clone(), labels.of_model);
    let (vs, model) = Classifier::open(files, &labels, images, settings, device)?;
    let config = model.adapter(settings.adapter()?);
    let mut tasks = Vec::with_capacity(rows.len());
    for ((train, eval), first) in rows.into_iter().zip(&firsts) {
        let run = &several.members[*first].run;
        let files = ModelFiles::open(&settings.model)?;
        let labels = Labels::of(&train, eval.as_ref(), &files, &run.data)?;
        ensure!(
            labels.names == names,
            "'{}' has the labels {:?} and '{}' {names:?}: one base has one head, so train them one by one",
            several.members[*first].name,
            labels.names,
            several.members[0].name
        );
        tasks.push(ClassifierTask::new(&model, device, train, eval, labels, run)?);
    }
    // A head that is new follows from the seed.
    let own = |run: &RunSettings<ClassifierData>| -> Result<Option<Weights>> {
        let other = &run.common;
        if of_model || other.seed == settings.seed {
            return Ok(None);
        }
        let files = ModelFiles::open(&settings.model)?;
        let (vs, _model) = Classifier::open(files, &labels, images, other, device)?;
        let options = settings.adapter_options();
        let tuned = LnTuningModel::with_options(&vs, config.clone(), DEFAULT_ADAPTER, &options)?;
        Ok(Some(tuned.state_dict(DEFAULT_ADAPTER)?))
    };
    let first_weights = runs().map(own).collect::<Result<Vec<_>>>()?;
    let work = Work { tasks: &tasks, of: &of, first_weights: &first_weights };
    several::start(several, work, &vs, config.clone(), mode)
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
