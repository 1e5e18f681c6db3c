//! The start of several runs: an adapter for each is attached, all is checked, and training begins or is only shown.

use anyhow::{Context, Result};
use ln_tuning::{
    DynamicLossScale, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, Optimizer,
};
use serde_json::json;
use tch::nn::VarStore;
use tch::Tensor;

use super::course::{self, Begun};
use super::members::{Member, Purpose, Several};
use super::record::{Line, Record};
use super::{grid, halving, together};
use crate::train::batches::{Job, Plan};
use crate::train::checkpoint;
use crate::train::metrics::Metrics;
use crate::train::preflight::{describe, measure};
use crate::train::report::Report;
use crate::train::start::Mode;
use crate::train::task::{Load, OfRun, Task};
use crate::train::trainer::Ready;

/// The work of the runs: their tasks, and the number of each run's.
pub struct Work<'t, T> {
    pub tasks: &'t [T],
    pub of: &'t [usize],
    /// The first weights of a run, under PEFT's keys, where they are not those of the base.
    pub first_weights: &'t [Option<Weights>],
}

pub type Weights = Vec<(String, Tensor)>;

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
    let (mut optimizers, apart) = optimizers(several, &adapters, &mut tuned)?;
    let alone = match apart {
        Some(reason) => Some(reason),
        None => trial(several, &work, &adapters, &mut optimizers)?,
    };
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
    let mut record = Record::open(&several.out, &names, &folders)?;
    let positions = members.iter().zip(&record.runs).zip(&totals).map(|((member, run), total)| {
        let stopped = run.stopped.as_ref().map(|stopped| stopped.step);
        let saved = checkpoint::steps(&member.run.common.out)?;
        Ok(Position { saved, stopped, total: *total })
    });
    let positions = positions.collect::<Result<Vec<_>>>()?;
    let step = common(&positions);
    record.back_to(step);
    let total = totals.iter().max().copied().unwrap_or(0);
    report.line(if step > 0 {
        format!("{} runs, resuming after step {step} of {total}", members.len())
    } else {
        format!("{} runs of {total} steps", members.len())
    });
    let mut begun = Vec::with_capacity(members.len());
    let trains = !matches!(mode, Mode::DryRun { .. });
    let seats = members.iter().zip(work.of).zip(adapters).zip(optimizers).zip(plans).zip(totals);
    for (at, seat) in seats.enumerate() {
        let (((((member, of), adapter), mut optimizer), mut plan), total) = seat;
        let (run, task) = (&member.run, &work.tasks[*of]);
        let settings = &run.common;
        let out = settings.out.as_path();
        if let Some(stopped) = record.runs[at].stopped.as_ref().filter(|_| trains) {
            begun.push((*of, Begun::Stopped(Metrics::open(out, stopped.step, false)?)));
            continue;
        }
        let own = Some(step.min(total)).filter(|step| *step > 0);
        let own = own.filter(|_| record.runs[at].stopped.is_none());
        let state = checkpoint::begin_at(own, settings, run.all.clone(), task.digest(), &mut plan);
        let (state, _) = state.with_context(|| member.name.clone())?;
        if !trains {
            continue;
        }
        if let Some(step) = own {
            let dir = checkpoint::dir(out, step);
            checkpoint::load(&dir, &dir, &mut tuned, &adapter, &mut optimizer)?;
        }
        checkpoint::forget_behind(out, state.step)?;
        let (name, ranks) = (member.name.clone(), &run.ranks);
        let ready = Ready { task, name, adapter, optimizer, settings, ranks, plan, state, total };
        begun.push((*of, Begun::Ready(Box::new(ready))));
    }
    if let Mode::DryRun { json } = mode {
        return show(several, &record, &tensors, &work, (total, step), report, json);
    }
    let mut rungs = match several.purpose {
        Purpose::Sweep { halving: true, .. } => halving::rungs(members.len(), total),
        _ => Vec::new(),
    };
    rungs.retain(|rung| *rung > record.halved);
    course::train(several, begun, record, rungs, alone.is_none(), vs, &mut tuned)
}

/// The optimisers, and the reason, if there is one, why no rows of several runs go through the model together.
fn optimizers<D>(
    several: &Several<D>,
    adapters: &[String],
    tuned: &mut LnTuningModel,
) -> Result<(Vec<Optimizer>, Option<String>)> {
    let members = || adapters.iter().zip(&several.members);
    let scale = |member: &Member<D>| {
        (member.run.common.scales_dynamically(), member.run.common.loss_scale())
    };
    let first = scale(&several.members[0]);
    let mut apart = None;
    if several.exact {
        apart = Some("each ends to the bit as it would alone".to_owned());
    } else if first.0 || members().any(|(_, member)| scale(member) != first) {
        apart = Some("each has a loss scale of its own".to_owned());
    }
    if apart.is_none() {
        let mut by_name = Vec::new();
        for (adapter, member) in members() {
            match member.run.common.optimizer_for(tuned, adapter) {
                Ok(optimizer) => by_name.push(optimizer),
                Err(error) if is_unsupported(&error) => {
                    apart = Some(format!("{}", error.root_cause()));
                    break;
                }
                Err(error) => return Err(error.context(member.name.clone())),
            }
        }
        if apart.is_none() {
            return Ok((by_name, None));
        }
    }
    let mut optimizers = Vec::with_capacity(adapters.len());
    for (adapter, member) in members() {
        tuned.set_adapter(adapter)?;
        let optimizer = member.run.common.optimizer(tuned);
        optimizers.push(optimizer.with_context(|| member.name.clone())?);
    }
    Ok((optimizers, apart))
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<ln_tuning::Error>().map(ln_tuning::Error::kind);
    kind == Some(ErrorKind::Unsupported)
}

/// Lets the largest batches of the first two runs go through the model together, which changes nothing. Gives the
/// reason, if they cannot.
fn trial<T: Task, D>(
    several: &Several<D>,
    work: &Work<T>,
    adapters: &[String],
    optimizers: &mut [Optimizer],
) -> Result<Option<String>> {
    let loaded = work.of.iter().take(2).zip(&several.members).map(|(of, member)| {
        let (task, settings) = (&work.tasks[*of], &member.run.common);
        let rows = task.largest(settings.batch_size).into_iter().find(|rows| !rows.is_empty());
        let rows = rows.context("there is nothing to train on: the data is empty")?;
        task.loader().load(&Job { eval: false, rows })
    });
    let loaded = loaded.collect::<Result<Vec<_>>>()?;
    let task = &work.tasks[work.of[0]];
    if loaded.len() < 2 || !loaded.iter().all(|batch| task.goes_together(batch)) {
        return Ok(Some("batches like these go through the model alone".to_owned()));
    }
    let batches = loaded.iter().zip(adapters).map(|(batch, adapter)| OfRun {
        batch,
        over: batch.targets.max(1),
        adapter,
    });
    let batches: Vec<OfRun<T>> = batches.collect();
    let recompute = several.members[0].run.common.recompute()?;
    let two = &mut optimizers[..2];
    let tried = together::backward(task, &batches, recompute, two.iter_mut());
    two.iter_mut().try_for_each(Optimizer::zero_grad)?;
    match tried {
        Ok(_) => Ok(None),
        Err(error) if is_unsupported(&error) => Ok(Some(format!("{}", error.root_cause()))),
        Err(error) => Err(error),
    }
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
