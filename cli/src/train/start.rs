//! The start of a run: the adapter is attached, all is checked, and training begins or is only shown.

use anyhow::Result;
use ln_tuning::{LnTuningConfig, LnTuningModel, DEFAULT_ADAPTER};
use tch::nn::VarStore;

use super::batches::Plan;
use super::dry_run;
use super::preflight::{describe, measure};
use super::settings::RunSettings;
use super::task::Task;
use super::trainer::Ready;
use super::{checkpoint, trainer};

/// Train, or only show what would happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Train,
    /// Show it, write nothing.
    DryRun {
        json: bool,
    },
}

pub fn start<T: Task, D>(
    task: &T,
    vs: &VarStore,
    config: LnTuningConfig,
    model_type: &str,
    run: &RunSettings<D>,
    mode: Mode,
) -> Result<()> {
    let settings = &run.common;
    let options = settings.adapter_options(model_type);
    let mut tuned = LnTuningModel::with_options(vs, config, DEFAULT_ADAPTER, &options)?;
    let mut optimizer = tuned.optimizer(settings.adamw(), settings.optimizer.lr)?;
    optimizer.set_loss_scale(settings.loss_scale())?;
    let quiet = mode == Mode::DryRun { json: true };
    let lines = describe(task, vs, &tuned, settings)?;
    if !quiet {
        println!("{}", lines.join("\n"));
    }
    let largest = measure(task, vs, &tuned, &mut optimizer, settings)?;
    if !quiet {
        println!("{largest}");
    }
    let state = checkpoint::begin(settings, run.all.clone(), task.digest())?;
    let plan = Plan {
        lengths: task.lengths(),
        size: settings.batch_size,
        seed: run.files.shuffle.then_some(settings.seed),
    };
    let epoch_steps = plan.epoch(0).len().div_ceil(settings.accumulation) as u64;
    let total = settings.max_steps.unwrap_or(epoch_steps * settings.epochs);
    if !quiet && state.step > 0 {
        println!("resuming after step {} of {total}", state.step);
    } else if !quiet {
        println!("{total} steps, {epoch_steps} in an epoch");
    }
    match mode {
        Mode::Train => {
            let tuned = &mut tuned;
            trainer::train(Ready { task, vs, tuned, optimizer, settings, plan, state, total })
        }
        Mode::DryRun { json } => {
            let steps = dry_run::Steps { total, epoch: epoch_steps, done: state.step };
            dry_run::show(
                tuned.trainable_parameters(),
                lines,
                largest,
                steps,
                task.example()?,
                json,
            )
        }
    }
}
