//! The start of several runs: an adapter for each is attached, all is checked, and training begins or is only shown.

use anyhow::{ensure, Context, Result};
use ln_tuning::{DynamicLossScale, LnTuningConfig, LnTuningModel, LoadOptions};
use serde_json::json;
use tch::nn::VarStore;

use super::course::{self, Begun};
use super::members::{alike, Member, Purpose, Several, Work};
use super::position::Common;
use super::record::{Line, Record};
use super::way::Way;
use super::{grid, halving};
use crate::train::batches::Plan;
use crate::train::begun::load;
use crate::train::checkpoint;
use crate::train::metrics::Metrics;
use crate::train::preflight::{describe, measure};
use crate::train::report::Report;
use crate::train::settings::Settings;
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
    let ranks = several.ranks();
    let Way { mut optimizers, alone } = Way::of(several, &work, &adapters, vs, &mut tuned)?;
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
        tensors = measure(own, vs, &tuned, &mut optimizers[at], settings, &mut report)
            .with_context(|| members[at].name.clone())?;
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
            (max_steps, max_steps.is_none().then_some((plan.group, plan.share, epochs)))
        });
        ensure!(
            alike(steps).1.len() < 2,
            "--halving compares runs at the same step, and the runs have different numbers of them: set 'max_steps', \
             and sweep neither it nor 'epochs'"
        );
    }
    let digests: Vec<String> = work.of.iter().map(|of| work.tasks[*of].digest()).collect();
    let names = (names.as_slice(), folders.as_slice());
    let Common { record, step, runs, .. } =
        Common::find(several, names, &mut plans, &totals, &digests)?;
    let total = totals.iter().max().copied().unwrap_or(0);
    if !ranks.are_one() {
        report.line(format!("{} ranks share the rows of each step", ranks.size()));
    }
    report.line(if step > 0 {
        format!("{} runs, resuming after step {step} of {total}", members.len())
    } else {
        format!("{} runs of {total} steps", members.len())
    });
    let trains = !matches!(mode, Mode::DryRun { .. });
    // All are checked before a file changes.
    let seats = members.iter().zip(work.of).zip(adapters).zip(optimizers).zip(plans).zip(totals);
    let mut checked = Vec::with_capacity(members.len());
    for ((seat, own), line) in seats.zip(runs).zip(&record.runs).filter(|_| trains) {
        let (((((member, of), adapter), mut optimizer), plan), total) = seat;
        let (task, settings, state) = (&work.tasks[*of], &member.run.common, own.state);
        if state.step > 0 {
            load(ranks, (&settings.out, state.step), &mut tuned, &adapter, &mut optimizer)?;
        }
        if !ranks.are_one() && line.stopped.is_none() {
            tuned.set_adapter(&adapter)?;
            ranks.join(&mut optimizer)?;
        }
        let name = member.name.clone();
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
            Some(stopped) => {
                let open = || Metrics::open(out, stopped.step, false);
                Begun::Stopped(ranks.agree(ranks.is_first().then(open).transpose())?)
            }
            None => {
                let forget = || checkpoint::forget_behind(out, ready.state.step);
                ranks.agree(ranks.is_first().then(forget).transpose())?;
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
