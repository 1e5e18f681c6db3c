//! The start of a run: the adapter is attached, all is checked, and training begins or is only shown.

use anyhow::Result;
use ln_tuning::{DynamicLossScale, LnTuningConfig, LnTuningModel, DEFAULT_ADAPTER};
use serde_json::json;
use tch::nn::VarStore;

use super::batches::Plan;
use super::preflight::{describe, measure};
use super::report::Report;
use super::settings::RunSettings;
use super::task::Task;
use super::trainer::Ready;
use super::{checkpoint, lr_finder, trainer};

/// Train, or only show what would happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Train,
    /// Show it, write nothing.
    DryRun {
        json: bool,
    },
    /// Try learning rates first, and train afterwards or not.
    FindLr {
        train: bool,
    },
}

pub fn start<T: Task, D>(
    task: &T,
    vs: &VarStore,
    config: LnTuningConfig,
    run: &RunSettings<D>,
    mode: Mode,
) -> Result<()> {
    let settings = &run.common;
    let options = settings.adapter_options();
    let mut tuned = LnTuningModel::with_options(vs, config, DEFAULT_ADAPTER, &options)?;
    let mut optimizer = settings.optimizer(&tuned)?;
    let mut report = Report::new(mode == Mode::DryRun { json: true });
    describe(task, vs, &tuned, settings, &mut report)?;
    let tensors = measure(task, vs, &tuned, &mut optimizer, settings, &mut report)?;
    if settings.scales_dynamically() {
        optimizer.set_dynamic_loss_scale(DynamicLossScale::default())?;
    }
    let plan = Plan {
        lengths: task.lengths(),
        size: settings.batch_size,
        seed: run.files.shuffle.then_some(settings.seed),
    };
    if let Mode::FindLr { train } = mode {
        lr_finder::find(task, &mut tuned, settings, &plan)?;
        if !train {
            return Ok(());
        }
    }
    let batches = plan.epoch(0).len();
    let state = checkpoint::begin(settings, run.all.clone(), task.digest(), batches)?;
    let epoch_steps = batches.div_ceil(settings.accumulation) as u64;
    let total = settings.max_steps.unwrap_or(epoch_steps * settings.epochs);
    if state.step > 0 {
        report.line(format!("resuming after step {} of {total}", state.step));
    } else {
        report.line(format!("{total} steps, {epoch_steps} in an epoch"));
    }
    if !matches!(mode, Mode::DryRun { .. }) {
        let (name, adapter) = (String::new(), DEFAULT_ADAPTER.to_owned());
        let ready = Ready { task, name, adapter, optimizer, settings, plan, state, total };
        return trainer::train(ready, vs, &mut tuned);
    }
    let example = task.example()?;
    if mode == (Mode::DryRun { json: false }) {
        println!("\nThese {} tensors train, all others stay as they are:", tensors.len());
        let width = tensors.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        tensors.iter().for_each(|(name, shape)| println!("  {name:<width$} {shape:?}"));
        println!("\n{example}\n\nThis was a dry run: nothing was written.");
        return Ok(());
    }
    let tensor = |(name, shape): &(String, Vec<i64>)| json!({"name": name, "shape": shape});
    report.set("tensors", tensors.iter().map(tensor).collect());
    report.set("steps", json!({"total": total, "epoch": epoch_steps, "done": state.step}));
    report.set("example", json!(example));
    report.finish();
    Ok(())
}
