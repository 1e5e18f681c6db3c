//! Training from a settings file, from `--set`, or from both.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::train::settings::{DataSettings, RunSettings, TaskName};
use crate::train::start::Mode;
use crate::train::yaml::Given;
use crate::train::{detect, interrupt};
use crate::{classifier, language};

/// Train the norms of a language model or of a classifier
///
/// The task follows from the model and the data, or from the setting 'task'. The result is a PEFT directory, with curves,
/// metrics and checkpoints beside it; the same command resumes a run that was stopped.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// The settings, in YAML; --sample prints a file that explains them all
    #[arg(value_name = "FILE.yaml", required_unless_present_any = ["set", "sample"])]
    file: Option<PathBuf>,
    /// Set one of them, with dots between levels; may be given many times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Show what would happen, and write nothing: what trains, steps, memory, and a document with what is learned marked
    #[arg(long)]
    dry_run: bool,
    /// Print the dry run as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Print all settings as they would be used
    #[arg(long, conflicts_with = "dry_run")]
    show: bool,
    /// Print a file with every setting explained
    #[arg(long, value_name = "TASK", exclusive = true)]
    sample: Option<TaskName>,
}

const EXAMPLE: &str = "\
Example:
  ln-tuning train --sample language > lm.yaml
  ln-tuning train lm.yaml --set optimizer.lr=1e-4 --dry-run
  ln-tuning train --set model=bert-base-uncased --set data.train=reviews.csv";

pub fn run(args: &Args) -> Result<()> {
    if let Some(task) = args.sample {
        print!(
            "{}",
            if task == TaskName::Language { language::SAMPLE } else { classifier::SAMPLE }
        );
        return Ok(());
    }
    let given = Given::read(args.file.as_deref(), &args.set)?;
    match detect::task(&given)? {
        task @ TaskName::Language => start(args, &given, task, language::train),
        task @ TaskName::Classifier => start(args, &given, task, classifier::train),
    }
}

fn start<D: DataSettings + Default + Serialize + DeserializeOwned>(
    args: &Args,
    given: &Given,
    task: TaskName,
    train: fn(&RunSettings<D>, Mode) -> Result<()>,
) -> Result<()> {
    let mut run: RunSettings<D> = given.settings()?;
    run.common.task = Some(task);
    if args.show {
        print!("{}", serde_yaml::to_string(&run).context("the settings are no YAML")?);
        return Ok(());
    }
    run.check()?;
    interrupt::listen()?;
    if let Some(threads) = run.common.threads {
        tch::set_num_threads(threads);
    }
    let mode = if args.dry_run { Mode::DryRun { json: args.json } } else { Mode::Train };
    train(&run, mode)
}
