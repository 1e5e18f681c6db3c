//! Training from a settings file, from `--set`, or from both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use clap::ValueEnum;

use crate::language::settings::LanguageData;
use crate::progress;
use crate::train::lock::Lock;
use crate::train::ranks::{alone_among, Ranks};
use crate::train::run_settings::RunSettings;
use crate::train::settings::TaskName;
use crate::train::several::grid::{self, Named};
use crate::train::several::{tasks, Purpose, Several};
use crate::train::start::Mode;
use crate::train::yaml::Given;
use crate::train::{detect, former, interrupt, memory};
use crate::{classifier, language};

/// Train the norms of a language model or of a classifier
///
/// The task follows from the model and the data, or from the setting 'task'. The result is a PEFT directory, with
/// curves, metrics and checkpoints beside it; the same command resumes a run that was stopped. Data are a text, a
/// folder of images, or rows: lines of JSON, a JSON array, CSV, TSV or Parquet; --sample explains what a row may hold.
///
/// Under torchrun, the processes it starts (ranks) train together, on one machine or several: each takes its rows of the
/// data, and rank 0 writes and prints. Ctrl-C or SIGTERM ends after a step, with a checkpoint.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// The settings, in YAML; --sample prints a file that explains them all
    #[arg(value_name = "FILE.yaml", required_unless_present_any = ["set", "sample"])]
    file: Option<PathBuf>,
    /// Set one of them, with dots between levels; may be given many times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Show what would happen, and write nothing: tensors, steps, memory, and a document with what is learned marked
    #[arg(long)]
    dry_run: bool,
    /// Print the dry run as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Try learning rates from 1e-5 to 1 on the first batches, in at most 60 steps, and suggest one: a table, and
    /// lr_finder.svg and lr_finder.csv in 'out'. Nothing else changes. 'then-train' goes on with the rate of the
    /// settings
    #[arg(long, value_name = "then-train", num_args = 0..=1, require_equals = true, default_missing_value = "only")]
    #[arg(conflicts_with_all = ["dry_run", "show"])]
    find_lr: Option<FindLr>,
    /// Train with each of these values of a setting, all on one base at once: the runs share the base and what is read,
    /// and end as each would alone. The adapter of the best is kept, by eval_loss or, without evaluation, by the loss of
    /// the last tenth of the steps. Given twice or more: all combinations. For settings of the optimiser, the schedule,
    /// clipping, loss_scale, seed, and the sizes and numbers of steps
    #[arg(long, value_name = "KEY=VALUE,VALUE", conflicts_with = "find_lr")]
    sweep: Vec<String>,
    /// Of a sweep or tasks: run after run in each step, so that each ends, to the bit, as it would alone. Otherwise rows of
    /// several runs go through the model together where that is faster, and results differ in the last digits
    #[arg(long)]
    exact: bool,
    /// Keep the adapters of all runs of a sweep, each in its folder
    #[arg(long, requires = "sweep")]
    keep_all: bool,
    /// Stop the worse half of a sweep's runs at half of the steps, and at the half of that, until one is left for the
    /// second half
    #[arg(long, requires = "sweep")]
    halving: bool,
    /// Under torchrun: seconds that a rank waits for the others, at the start and in each step, before it gives up
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    ddp_timeout: u64,
    /// Print all settings as they would be used
    #[arg(long, conflicts_with = "dry_run")]
    show: bool,
    /// Print a file with every setting explained
    #[arg(long, value_name = "TASK", exclusive = true)]
    sample: Option<TaskName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FindLr {
    Only,
    ThenTrain,
}

const EXAMPLE: &str = "\
Example:
  ln-tuning train --sample language > lm.yaml
  ln-tuning train lm.yaml --set optimizer.lr=1e-3 --dry-run
  ln-tuning train lm.yaml --find-lr
  ln-tuning train lm.yaml --sweep optimizer.lr=1e-3,3e-3,1e-2
  ln-tuning train --set model=bert-base-uncased --set data.train=reviews.csv
  torchrun --nproc-per-node 8 --no-python ln-tuning train lm.yaml";

pub fn run(args: &Args) -> Result<()> {
    let place = Ranks::of_launcher()?;
    if !place.is_first() {
        progress::be_quiet();
    }
    if args.dry_run || args.show || args.sample.is_some() {
        // Nothing is done together.
        return if place.is_first() { at_place(args, &place) } else { Ok(()) };
    }
    interrupt::listen()?;
    if let Some(words) = alone_among() {
        progress::warn(format!("warning: {words}"));
    }
    // Before anything that may fail in one of them alone.
    let ranks = place.connect(Duration::from_secs(args.ddp_timeout))?;
    let done = at_place(args, &ranks).map_err(|error| ranks.failed(error));
    match interrupt::failed() {
        Some(error) => bail!(error),
        None => done,
    }
}

fn at_place(args: &Args, ranks: &Ranks) -> Result<()> {
    if let Some(task) = args.sample {
        print!("{}", sample(task));
        return Ok(());
    }
    let given = Given::read(args.file.as_deref(), &args.set)?;
    let tasks = tasks::runs(&given)?;
    if let Some(first) = tasks.first() {
        let other = [
            (!args.sweep.is_empty(), "--sweep"),
            (args.find_lr.is_some(), "--find-lr"),
            (!given.list("stages")?.is_empty(), "'stages'"),
        ];
        let other = other.iter().find(|(there, _)| *there);
        if let Some((_, other)) = other {
            bail!("{other} is for a run without 'tasks': leave one of them out");
        }
        let task = detect::task(&first.given)?;
        return at_once(args, task, tasks, Purpose::Tasks, ranks);
    }
    ensure!(
        !args.exact || !args.sweep.is_empty(),
        "--exact is for several runs, of --sweep or of 'tasks': leave it out, a run alone is exact"
    );
    let task = detect::task(&given)?;
    let stages = given.stages()?;
    if !stages.is_empty() {
        ensure!(
            args.sweep.is_empty(),
            "--sweep is for a run without 'stages': leave one of them out"
        );
        return in_stages(args, task, &stages, ranks);
    }
    if !args.sweep.is_empty() {
        let runs = grid::runs(&given, &args.sweep)?;
        let purpose = Purpose::Sweep { halving: args.halving, keep_all: args.keep_all };
        return at_once(args, task, runs, purpose, ranks);
    }
    let mut settings = given.over(sample(task))?;
    let kept = former::keep(&given, &mut settings);
    if args.show {
        print!("{}", serde_yaml::to_string(&settings.all)?);
        return Ok(());
    }
    if let Some(kept) = kept.filter(|_| !args.json) {
        progress::say(kept);
    }
    let mode = match args.find_lr {
        Some(after) => Mode::FindLr { train: after == FindLr::ThenTrain },
        None => mode(args),
    };
    let done = match task {
        TaskName::Language => {
            let run = RunSettings::new(&settings, ranks)?;
            let _lock = lock(mode, [run.common.out.as_path()], ranks)?;
            language::train(&run, mode, &[])
        }
        TaskName::Classifier => {
            let run = RunSettings::new(&settings, ranks)?;
            let _lock = lock(mode, [run.common.out.as_path()], ranks)?;
            classifier::train(&run, mode)
        }
    };
    done.map(drop).map_err(|error| memory::explained(error, memory::SETTINGS))
}

fn mode(args: &Args) -> Mode {
    if args.dry_run {
        Mode::DryRun { json: args.json }
    } else {
        Mode::Train
    }
}

/// Lets no other run write into these folders, unless nothing is written. All ranks have got so far then.
fn lock<'p>(
    mode: Mode,
    folders: impl IntoIterator<Item = &'p Path>,
    ranks: &Ranks,
) -> Result<Lock> {
    let writes = !matches!(mode, Mode::DryRun { .. });
    Lock::take(folders.into_iter().filter(|_| writes), ranks)
}

/// Several runs on one base, each in a folder of its own.
fn at_once(
    args: &Args,
    task: TaskName,
    runs: Vec<Named>,
    purpose: Purpose,
    ranks: &Ranks,
) -> Result<()> {
    let folders = grid::folders(runs.iter().map(|run| run.name.as_str()));
    let mut trees = Vec::with_capacity(runs.len());
    let mut out = PathBuf::new();
    for (Named { name, given }, folder) in runs.into_iter().zip(folders) {
        let mut tree = given.over(sample(task))?;
        out = PathBuf::from(tree.all["out"].as_str().unwrap_or_default());
        let own = if purpose == Purpose::Tasks { out.clone() } else { out.join("runs") };
        tree.all["out"] = own.join(folder).display().to_string().into();
        if args.show {
            print!("---\n{}", serde_yaml::to_string(&tree.all)?);
        }
        trees.push((name, tree));
    }
    if args.show {
        return Ok(());
    }
    let mode = mode(args);
    let done = match task {
        TaskName::Language => {
            let several = Several::new(out, &trees, purpose, args.exact, ranks)?;
            let _lock = lock(mode, several.folders(), ranks)?;
            language::train_several(&several, mode)
        }
        TaskName::Classifier => {
            let several = Several::new(out, &trees, purpose, args.exact, ranks)?;
            let _lock = lock(mode, several.folders(), ranks)?;
            classifier::train_several(&several, mode)
        }
    };
    done.map_err(|error| memory::explained(error, memory::SETTINGS))
}

/// One stage after the other, each in a folder of its own; in the end all that they trained is one adapter.
fn in_stages(args: &Args, task: TaskName, stages: &[Given], ranks: &Ranks) -> Result<()> {
    ensure!(
        task == TaskName::Language,
        "'stages' are for language models: leave them out for a classifier"
    );
    ensure!(
        args.find_lr.is_none(),
        "--find-lr is for a run without 'stages': leave them out, and set what one of them sets"
    );
    let mut runs = Vec::new();
    for (number, stage) in stages.iter().enumerate() {
        let mut tree = stage.over(sample(task))?;
        let out = tree.all["out"].as_str().unwrap_or_default().to_owned();
        tree.all["out"] = format!("{out}/stage-{}", number + 1).into();
        if args.show {
            print!("---\n{}", serde_yaml::to_string(&tree.all)?);
        }
        // Faults of later stages come before the first one.
        runs.push((PathBuf::from(out), RunSettings::<LanguageData>::new(&tree, ranks)?));
    }
    if args.show {
        return Ok(());
    }
    let mode = mode(args);
    let whole = runs.first().map(|(out, _)| out.as_path());
    let of_stages = runs.iter().map(|(_, run)| run.common.out.as_path());
    let _lock = lock(mode, whole.into_iter().chain(of_stages), ranks)?;
    for (number, (_, run)) in runs.iter().enumerate().skip(1) {
        let data = &run.all["data"];
        let rows = runs[..number].iter().all(|(_, before)| before.all["data"] != *data);
        language::check(run, rows).with_context(|| format!("stage {}", number + 1))?;
    }
    let mut done: Vec<PathBuf> = Vec::new();
    for (number, (_, run)) in runs.iter().enumerate() {
        if !args.json {
            progress::say(format!("stage {} of {}", number + 1, runs.len()));
        }
        let ended = language::train(run, mode, &done)
            .map_err(|error| memory::explained(error, memory::SETTINGS))
            .with_context(|| format!("stage {}", number + 1))?;
        if !ended {
            return Ok(());
        }
        if mode == Mode::Train {
            done.push(run.common.out.join("adapter"));
        }
    }
    let combined = match runs.last() {
        Some((out, run)) if mode == Mode::Train && ranks.is_first() => {
            language::combine(run, &done, &out.join("adapter"))
        }
        _ => Ok(()),
    };
    ranks.agree(combined)
}

pub(super) fn sample(task: TaskName) -> &'static str {
    match task {
        TaskName::Language => language::SAMPLE,
        TaskName::Classifier => classifier::SAMPLE,
    }
}

#[cfg(test)]
mod tests {
    use serde_yaml::Value;

    use super::*;
    use crate::classifier::settings::ClassifierData;

    /// Keys of single values, but for those of the adapter, which the library reads.
    fn keys(sample: &Value, above: &str) -> Vec<String> {
        let Value::Mapping(map) = sample else { return vec![above.trim_end_matches('.').into()] };
        let named = map.iter().map(|(key, value)| (key.as_str().unwrap(), value));
        let inner = named.filter(|(key, _)| !["adapter", "task", "stages", "tasks"].contains(key));
        inner.flat_map(|(key, value)| keys(value, &format!("{above}{key}."))).collect()
    }

    #[test]
    fn every_setting_of_the_samples_can_be_swept_or_there_is_a_reason() {
        for task in [TaskName::Language, TaskName::Classifier] {
            let sample: Value = serde_yaml::from_str(sample(task)).unwrap();
            for key in sample.as_mapping().unwrap().keys().filter_map(Value::as_str) {
                let given = Given::read(None, &[]).unwrap();
                let swept = grid::runs(&given, &[format!("{key}=0,1")]);
                let reason = swept.map_err(|error| error.to_string()).err();
                let may = grid::SWEPT.contains(&key);
                assert_eq!(may, reason.is_none(), "{key}: {reason:?}");
                let task = tasks::runs(
                    &Given::read(None, &[format!("tasks=[{{name: a, {key}: 0}}]")]).unwrap(),
                );
                let own = task.map_err(|error| error.to_string()).err();
                assert_eq!(tasks::allowed().contains(&key), own.is_none(), "{key}: {own:?}");
            }
        }
    }

    #[test]
    fn every_setting_of_the_samples_is_read() {
        for task in [TaskName::Language, TaskName::Classifier] {
            let keys = keys(&serde_yaml::from_str(sample(task)).unwrap(), "");
            assert!(keys.len() > 30, "{keys:?}");
            for key in keys {
                // A value that fits nowhere.
                let given = Given::read(None, &[format!("{key}={{no: 0}}")]).unwrap();
                let settings = given.over(sample(task)).unwrap();
                let error = match task {
                    TaskName::Language => {
                        RunSettings::<LanguageData>::new(&settings, &Ranks::alone()).map(drop)
                    }
                    TaskName::Classifier => {
                        RunSettings::<ClassifierData>::new(&settings, &Ranks::alone()).map(drop)
                    }
                };
                let error = format!("{:#}", error.unwrap_err());
                assert!(error.contains(&format!("'{key}' is no: 0: ")), "{key}: {error}");
            }
        }
    }
}
