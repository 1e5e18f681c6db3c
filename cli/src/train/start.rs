//! The start of a run: the adapter is attached, all is checked, and training begins or is only shown.

use anyhow::Result;
use ln_tuning::{DynamicLossScale, LnTuningConfig, LnTuningModel, DEFAULT_ADAPTER};
use serde_json::json;
use tch::nn::VarStore;

use super::batches::Plan;
use super::begun::{load, Begun};
use super::preflight::{describe, measure};
use super::report::Report;
use super::run_settings::RunSettings;
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

/// Trains, and says whether the run is at its end.
pub fn start<T: Task, D>(
    task: &T,
    vs: &VarStore,
    config: LnTuningConfig,
    run: &RunSettings<D>,
    mode: Mode,
) -> Result<bool> {
    let (settings, ranks) = (&run.common, &run.ranks);
    let options = settings.adapter_options();
    let mut tuned = LnTuningModel::with_options(vs, config, DEFAULT_ADAPTER, &options)?;
    let mut optimizer = settings.optimizer(&tuned)?;
    let mut report = Report::new(mode == Mode::DryRun { json: true });
    describe(task, vs, &tuned, settings, &mut report)?;
    let tensors = measure(task, vs, &tuned, &mut optimizer, settings, &mut report)?;
    if settings.scales_dynamically() {
        optimizer.set_dynamic_loss_scale(DynamicLossScale::default())?;
    }
    let mut plan = Plan {
        lengths: task.lengths(),
        group: settings.group(),
        seed: run.files.shuffle.then_some(settings.seed),
        share: settings.share(ranks),
    };
    if let Mode::FindLr { train } = mode {
        ranks.agree(Ok(()))?;
        lr_finder::find(task, &mut tuned, settings, &plan, ranks)?;
        if !train {
            return Ok(true);
        }
    }
    let trains = !matches!(mode, Mode::DryRun { .. });
    let out = settings.out.as_path();
    // Rank 0 alone looks for a checkpoint, so that all go on from the same.
    let mut begun = None;
    if ranks.is_first() {
        let newest = checkpoint::newest(out)?;
        begun = Some(Begun::find(newest, settings, &run.all, task.digest(), &mut plan)?);
    }
    let begun = ranks.agree(Ok(begun))?;
    let Begun { state, change, .. } = match begun {
        Some(begun) if ranks.are_one() => begun,
        begun => {
            let begun = begun.map(|begun| serde_json::to_vec(&begun)).transpose()?;
            let begun = ranks.bytes(begun.unwrap_or_default())?;
            let begun: Begun = serde_json::from_slice(&begun)?;
            let fits = begun.check(&run.all, &task.digest(), settings, begun.state.step);
            ranks.agree(fits)?;
            begun
        }
    };
    plan.group = state.group;
    if trains && state.step > 0 {
        load(ranks, (out, state.step), &mut tuned, DEFAULT_ADAPTER, &mut optimizer)?;
    }
    report.lines(change);
    let epoch_steps = plan.per_epoch();
    // Steps may have had another size so far.
    let later = settings.epochs.saturating_sub(state.epoch + 1) * epoch_steps;
    let left = plan.steps(state.epoch, state.rows).len() as u64 + later;
    let total = settings.max_steps.unwrap_or(state.step + left);
    if !ranks.are_one() {
        report.line(format!(
            "{} ranks, {} rows in a step: 'batch_size' {} × 'accumulation' {} × {}",
            ranks.size(),
            plan.share.global_batch_size(),
            settings.batch_size,
            settings.accumulation,
            ranks.size()
        ));
    }
    if state.step > 0 {
        report.line(format!("resuming after step {} of {total}", state.step));
    } else {
        report.line(format!("{total} steps, {epoch_steps} in an epoch"));
    }
    if trains {
        ranks.join(&mut optimizer)?;
        let (name, adapter) = (String::new(), DEFAULT_ADAPTER.to_owned());
        let ready = Ready { task, name, adapter, optimizer, settings, ranks, plan, state, total };
        return trainer::train(ready, vs, &tuned);
    }
    let example = task.example()?;
    if mode == (Mode::DryRun { json: false }) {
        println!("\nThese {} tensors train, all others stay as they are:", tensors.len());
        let width = tensors.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        tensors.iter().for_each(|(name, shape)| println!("  {name:<width$} {shape:?}"));
        println!("\n{example}\n\nThis was a dry run: nothing was written.");
        return Ok(true);
    }
    let tensor = |(name, shape): &(String, Vec<i64>)| json!({"name": name, "shape": shape});
    report.set("tensors", tensors.iter().map(tensor).collect());
    report.set("steps", json!({"total": total, "epoch": epoch_steps, "done": state.step}));
    report.set("example", json!(example));
    report.finish();
    Ok(true)
}
