//! The start of several runs: an adapter for each is attached, all is checked, and training begins or is only shown.

use anyhow::{ensure, Context, Result};
use ln_tuning::{DynamicLossScale, LnTuningConfig, LnTuningModel, LoadOptions};
use serde_json::json;
use tch::nn::VarStore;

use super::course::{self, Begun};
use super::members::{alike, Member, Purpose, Several, Work};
use super::record::{Line, Record};
use super::way::Way;
use super::{grid, halving};
use crate::train::batches::Plan;
use crate::train::checkpoint;
use crate::train::metrics::Metrics;
use crate::train::preflight::{describe, measure};
use crate::train::report::Report;
use crate::train::settings::{Resume, Settings};
use crate::train::start::Mode;
use crate::train::task::Task;
use crate::train::trainer::Ready;

/// Trains the runs, each an adapter on these variables, or shows what would happen.
pub fn start<T: Task, D>(
    several: &Several<D>,
    work: Work<T>,
    vs: &VarStore,
    config: LnTuningConfig,
    mode: Mode,
) -> Result<()> {
    let members = &several.members;
    let first = &members.first().context("there is no run")?.run.common;
    let mut report = Report::new(mode == Mode::DryRun { json: true });
    let options = first.adapter_options();
    // No names of adapters: those of runs may hold anything.
    let adapters: Vec<String> = (1..=members.len()).map(|number| format!("run-{number}")).collect();
    let mut tuned = LnTuningModel::with_options(vs, config.clone(), &adapters[0], &options)?;
    for adapter in &adapters[1..] {
        tuned.add_adapter_with(adapter, config.clone(), &options)?;
    }
    for (adapter, weights) in adapters.iter().zip(work.first_weights) {
        if let Some(weights) = weights {
            tuned.load_state_dict(adapter, weights, &LoadOptions::default())?;
        }
    }
    let Way { mut optimizers, alone } = Way::of(several, &work, &adapters, vs, &mut tuned)?;
    if members.len() > 1 {
        report.line(match &alone {
            Some(reason) => format!("one run after the other in each step: {reason}"),
            None => "rows of several runs go through the model together, where that is faster: each ends as it would \
                     alone, but for rounding; --exact: to the bit"
                .to_owned(),
        });
    }
    let mut tensors = Vec::new();
    for (task, own) in work.tasks.iter().enumerate() {
        let Some(at) = work.of.iter().position(|of| *of == task) else { continue };
        tuned.set_adapter(&adapters[at])?;
        if task == 0 {
            describe(own, vs, &tuned, first, &mut report)?;
        } else {
            let name = &members[at].name;
            own.describe().into_iter().for_each(|line| report.line(format!("{name}: {line}")));
        }
        let settings = &members[at].run.common;
        tensors = measure(own, vs, &tuned, &mut optimizers[at], settings, &mut report)?;
    }
    let mut plans = Vec::with_capacity(members.len());
    for ((member, task), optimizer) in members.iter().zip(work.of).zip(&mut optimizers) {
        let settings = &member.run.common;
        if settings.scales_dynamically() {
            optimizer.set_dynamic_loss_scale(DynamicLossScale::default())?;
        }
        plans.push(Plan {
            lengths: work.tasks[*task].lengths(),
            group: settings.group(),
            seed: member.run.files.shuffle.then_some(settings.seed),
            share: settings.share(&member.run.ranks),
        });
    }
    let totals = members.iter().zip(&plans).map(|(member, plan)| {
        let settings = &member.run.common;
        settings.max_steps.unwrap_or_else(|| plan.per_epoch() * settings.epochs)
    });
    let totals: Vec<u64> = totals.collect();
    let names: Vec<String> = members.iter().map(|member| member.name.clone()).collect();
    let folders = grid::folders(names.iter().map(String::as_str));
    if let Purpose::Sweep { halving: true, .. } = several.purpose {
        // Seeds may pack the data into some rows more.
        let steps = members.iter().zip(&plans).map(|(member, plan)| {
            let Settings { epochs, max_steps, .. } = member.run.common;
            (plan.group, plan.share, epochs, max_steps)
        });
        ensure!(
            alike(steps).1.len() < 2,
            "--halving compares runs at the same step, and steps differ: sweep no 'batch_size', 'accumulation', \
             'epochs' or 'max_steps' with it"
        );
    }
    let recorded = several.out.join(checkpoint::RUNS).exists();
    let mut record = Record::open(&several.out, &names, &folders)?;
    let positions = members.iter().zip(&record.runs).zip(&totals).map(|((member, run), total)| {
        let stopped = run.stopped.as_ref().map(|stopped| stopped.step);
        let saved = checkpoint::steps(&member.run.common.out)?;
        Ok(Position { saved, stopped, total: *total })
    });
    let positions = positions.collect::<Result<Vec<_>>>()?;
    let step = common(&positions);
    check_held(several, &positions, step, recorded)?;
    record.back_to(step);
    let total = totals.iter().max().copied().unwrap_or(0);
    report.line(if step > 0 {
        format!("{} runs, resuming after step {step} of {total}", members.len())
    } else {
        format!("{} runs of {total} steps", members.len())
    });
    let trains = !matches!(mode, Mode::DryRun { .. });
    // All are checked before a file changes.
    let seats = members.iter().zip(work.of).zip(adapters).zip(optimizers).zip(plans).zip(totals);
    let mut checked = Vec::with_capacity(members.len());
    for (at, seat) in seats.enumerate() {
        let (((((member, of), adapter), mut optimizer), mut plan), total) = seat;
        let (run, task, stopped) = (&member.run, &work.tasks[*of], &record.runs[at].stopped);
        let settings = &run.common;
        let own = Some(step.min(total)).filter(|step| *step > 0 && stopped.is_none());
        let state = checkpoint::begin_at(own, settings, run.all.clone(), task.digest(), &mut plan);
        let (state, _) = state.with_context(|| member.name.clone())?;
        if let Some(step) = own.filter(|_| trains) {
            let dir = checkpoint::dir(&settings.out, step);
            checkpoint::load(&dir, &dir, &mut tuned, &adapter, &mut optimizer)?;
        }
        let (name, ranks) = (member.name.clone(), &run.ranks);
        checked.push((
            *of,
            Ready { task, name, adapter, optimizer, settings, ranks, plan, state, total },
        ));
    }
    if let Mode::DryRun { json } = mode {
        return show(several, &record, &tensors, &work, (total, step), report, json);
    }
    let mut begun = Vec::with_capacity(members.len());
    for ((of, ready), run) in checked.into_iter().zip(&record.runs) {
        let out = ready.settings.out.as_path();
        let own = match &run.stopped {
            Some(stopped) => Begun::Stopped(Metrics::open(out, stopped.step, false)?),
            None => {
                checkpoint::forget_behind(out, ready.state.step)?;
                Begun::Ready(Box::new(ready))
            }
        };
        begun.push((of, own));
    }
    let mut rungs = match several.purpose {
        Purpose::Sweep { halving: true, .. } => halving::rungs(members.len(), total),
        _ => Vec::new(),
    };
    rungs.retain(|rung| *rung > record.halved);
    course::train(several, begun, record, rungs, alone.is_none(), vs, &mut tuned)
}

/// The end of a dry run.
fn show<T: Task, D>(
    several: &Several<D>,
    record: &Record,
    tensors: &[(String, Vec<i64>)],
    work: &Work<T>,
    (total, step): (u64, u64),
    mut report: Report,
    json: bool,
) -> Result<()> {
    let runs = several.members.iter().zip(&record.runs);
    if !json {
        println!();
        for (member, _) in runs {
            println!("{}: in '{}'", member.name, member.run.common.out.display());
        }
        println!("\nThis was a dry run: nothing was written.");
        return Ok(());
    }
    let run = |(member, run): (&Member<D>, &Line)| {
        json!({
            "name": member.name,
            "out": member.run.common.out,
            "stopped": run.stopped,
            "settings": member.run.all,
        })
    };
    report.set("runs", runs.map(run).collect());
    let tensor = |(name, shape): &(String, Vec<i64>)| json!({"name": name, "shape": shape});
    report.set("tensors", tensors.iter().map(tensor).collect());
    report.set("steps", json!({"total": total, "done": step}));
    report.set("example", json!(work.tasks.first().context("there is no task")?.example()?));
    report.finish();
    Ok(())
}

/// Refuses checkpoints that nobody would go on from, and that a new beginning would remove.
fn check_held<D>(
    several: &Several<D>,
    positions: &[Position],
    step: u64,
    recorded: bool,
) -> Result<()> {
    let mut held = several.members.iter().zip(positions);
    let Some((member, _)) = held.find(|(_, position)| !position.saved.is_empty()) else {
        return Ok(());
    };
    let Settings { out, resume, .. } = &member.run.common;
    ensure!(
        *resume != Resume::Never,
        "'{}' holds checkpoints of a run, and 'resume' is never: choose another 'out', or set 'resume' to auto",
        out.display()
    );
    ensure!(
        recorded || step > 0,
        "'{}' holds checkpoints, and there is no '{}' that says that they are of these runs: choose another 'out', or \
         remove them",
        out.display(),
        several.out.join(checkpoint::RUNS).display()
    );
    Ok(())
}

/// The place of a run on disk.
struct Position {
    /// The steps of its checkpoints.
    saved: Vec<u64>,
    /// The step at which it stopped for good.
    stopped: Option<u64>,
    /// Its last step.
    total: u64,
}

/// The newest step from which all runs can go on. One that has fewer steps is then at its end.
fn common(runs: &[Position]) -> u64 {
    let mut steps: Vec<u64> = runs.iter().flat_map(|run| &run.saved).copied().collect();
    steps.sort_unstable();
    let has = |run: &Position, step: u64| {
        run.stopped.is_some_and(|stopped| stopped <= step)
            || run.saved.contains(&step.min(run.total))
    };
    steps.into_iter().rev().find(|step| runs.iter().all(|run| has(run, *step))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_on_from_the_newest_step_that_all_have() {
        let run =
            |saved: &[u64], stopped, total| Position { saved: saved.to_vec(), stopped, total };
        let on = |saved: &[u64]| run(saved, None, 100);
        assert_eq!(common(&[on(&[5, 10]), on(&[5, 10])]), 10);
        // Killed while the second one saved.
        assert_eq!(common(&[on(&[5, 10]), on(&[5])]), 5);
        assert_eq!(common(&[on(&[5, 10]), on(&[])]), 0);
        // One that has ended, or stopped for good, waits for nobody.
        assert_eq!(common(&[on(&[10, 20]), run(&[8, 12], None, 12)]), 20);
        assert_eq!(common(&[on(&[10, 20]), run(&[5], Some(7), 100)]), 20);
        assert_eq!(common(&[on(&[5]), run(&[5], Some(7), 100)]), 5);
        assert_eq!(common(&[]), 0);
    }
}
