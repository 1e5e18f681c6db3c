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
use super::position::Common;
use super::record::{Line, Record};
use super::{grid, halving, together};
use crate::train::batches::{Job, Plan};
use crate::train::begun::load;
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
    let ranks = several.ranks();
    let (mut optimizers, apart) = optimizers(several, &adapters, &mut tuned)?;
    let alone = match apart {
        Some(reason) => Some(reason),
        None => trial(several, &work, &adapters, &mut optimizers)?,
    };
    ranks.agree(Ok(()))?;
    ranks.check_same("way to train several runs", alone.as_deref().unwrap_or("together"))?;
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
    let trains = !matches!(mode, Mode::DryRun { .. });
    let digests: Vec<String> = work.of.iter().map(|of| work.tasks[*of].digest()).collect();
    let names = (names.as_slice(), folders.as_slice());
    let Common { record, step, runs } =
        Common::find(several, names, &mut plans, &totals, &digests, trains)?;
    let total = totals.iter().max().copied().unwrap_or(0);
    if !ranks.are_one() {
        report.line(format!("{} ranks share the rows of each step", ranks.size()));
    }
    report.line(if step > 0 {
        format!("{} runs, resuming after step {step} of {total}", members.len())
    } else {
        format!("{} runs of {total} steps", members.len())
    });
    let mut begun = Vec::with_capacity(members.len());
    let seats = members.iter().zip(work.of).zip(adapters).zip(optimizers).zip(plans).zip(totals);
    for (at, (seat, own)) in seats.zip(runs).enumerate().filter(|_| trains) {
        let (((((member, of), adapter), mut optimizer), plan), total) = seat;
        let (task, settings, state) = (&work.tasks[*of], &member.run.common, own.state);
        let out = settings.out.as_path();
        if let Some(stopped) = &record.runs[at].stopped {
            let open = || Metrics::open(out, stopped.step, false);
            let metrics = ranks.agree(ranks.is_first().then(open).transpose())?;
            begun.push((*of, Begun::Stopped(metrics)));
            continue;
        }
        if state.step > 0 {
            load(ranks, (out, state.step), &mut tuned, &adapter, &mut optimizer)?;
        }
        if !ranks.are_one() {
            tuned.set_adapter(&adapter)?;
            ranks.join(&mut optimizer)?;
        }
        let name = member.name.clone();
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
