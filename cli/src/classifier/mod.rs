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

use crate::train::run_settings::RunSettings;
use crate::train::several::{self, Several, Weights, Work};
use crate::train::shift::{Asked, Shift};
use crate::train::start::{start, Mode};
use labels::{shown, Labels};
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
    let mut data = Vec::with_capacity(firsts.len());
    for member in firsts.iter().map(|first| &several.members[*first]) {
        let own = LabelledRows::open(&member.run, &files).with_context(|| member.name.clone())?;
        if let Some(first) = data.first() {
            own.check_beside(&member.name, first, &several.members[0].name)?;
        }
        data.push(own);
    }
    first.ranks.agree(Ok(()))?;
    let (labels, images) = (data[0].labels.clone(), data[0].train.are_images());
    let (vs, model) = Classifier::open(files, &labels, images, settings, device)?;
    let config = model.adapter(settings.adapter()?);
    // A head that is new follows from the seed.
    let head = |run: &RunSettings<ClassifierData>, own: &Labels| -> Result<_> {
        let other = &run.common;
        if own.same_head(&labels) && (own.of_model || other.seed == settings.seed) {
            return Ok((None, model.config.clone()));
        }
        let files = ModelFiles::open(&settings.model)?;
        let (vs, model) = Classifier::open(files, own, images, other, device)?;
        let options = settings.adapter_options();
        let tuned = LnTuningModel::with_options(&vs, config.clone(), DEFAULT_ADAPTER, &options)?;
        Ok((Some(tuned.state_dict(DEFAULT_ADAPTER)?), model.config))
    };
    let mut first_weights: Vec<Option<Weights>> = Vec::with_capacity(of.len());
    let mut configs = vec![None; data.len()];
    for (run, of) in runs().zip(&of) {
        let (weights, config) = head(run, &data[*of].labels)?;
        first_weights.push(weights);
        configs[*of].get_or_insert(config);
    }
    let mut tasks = Vec::with_capacity(data.len());
    for ((own, config), first) in data.into_iter().zip(configs).zip(&firsts) {
        let LabelledRows { train, eval, labels } = own;
        let run = &several.members[*first].run;
        let task = ClassifierTask::new(&model, device, train, eval, labels, run)?;
        tasks.push(task.with_config(config.context("there is a run of each task")?));
    }
    let work = Work { tasks: &tasks, of: &of, first_weights: &first_weights };
    several::start(several, work, &vs, config.clone(), mode)
}

/// The data of some runs, and what their labels stand for.
struct LabelledRows {
    train: Rows,
    eval: Option<Rows>,
    labels: Labels,
}

impl LabelledRows {
    fn open(run: &RunSettings<ClassifierData>, files: &ModelFiles) -> Result<Self> {
        let open = |path: &_| Rows::open(path, run);
        let (train, eval) = run.files.open(run.common.seed, open, Rows::split)?;
        let labels = Labels::of(&train, eval.as_ref(), files, &run.data)?;
        Ok(LabelledRows { train, eval, labels })
    }

    /// Refuses data that one base with one head cannot learn from beside others.
    fn check_beside(&self, name: &str, first: &Self, first_name: &str) -> Result<()> {
        let cure = "train them one by one";
        let kind = |rows: &Self| if rows.train.are_images() { "pictures" } else { "texts" };
        ensure!(
            kind(self) == kind(first),
            "'{name}' is of {} and '{first_name}' of {}, and one base takes either: {cure}",
            kind(self),
            kind(first)
        );
        let (own, others) = (&self.labels.names, &first.labels.names);
        ensure!(
            own.len() == others.len(),
            "'{name}' has {} labels ({}) and '{first_name}' {} ({}), and the heads on one base have one size: {cure}",
            own.len(),
            shown(own.iter().map(String::as_str)),
            others.len(),
            shown(others.iter().map(String::as_str))
        );
        Ok(())
    }
}

/// Trains, and says whether the run is at its end.
pub fn train(run: &RunSettings<ClassifierData>, mode: Mode) -> Result<bool> {
    let settings = &run.common;
    let device = settings.device(&run.ranks)?;
    // Before the model is loaded: bad rows are found first.
    let files = ModelFiles::open(&settings.model)?;
    let LabelledRows { train, eval, labels } = LabelledRows::open(run, &files)?;
    let images = train.are_images();
    // Bad rows are said once, and nobody waits for whoever has none.
    run.ranks.agree(Ok(()))?;
    let (vs, model) = Classifier::open(files, &labels, images, settings, device)?;
    let config = model.adapter(settings.adapter()?);
    let task = ClassifierTask::new(&model, device, train, eval, labels, run)?;
    start(&task, &vs, config, run, mode)
}
