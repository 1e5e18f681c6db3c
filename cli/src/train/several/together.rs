//! Steps of several runs at once: their rows go through the model together, each with the adapter of its run.

use anyhow::{Context, Result};
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::{LnTuningModel, Optimizer};
use tch::{Device, Tensor};

use crate::train::order::step_seed;
use crate::train::task::{OfRun, Task};
use crate::train::trainer::{Group, Run};

/// Tokens that go through the model at once: with so many of its own, a run gains nothing by the rows of others.
fn most(device: Device) -> u64 {
    if device == Device::Cpu {
        512
    } else {
        8192
    }
}

/// One step of each of these runs, with its batches: of as many runs together as gain by it.
pub(super) fn step<T: Task>(
    runs: Vec<(&mut Run<T>, &Group<T>)>,
    device: Device,
    tuned: &mut LnTuningModel,
) -> Result<()> {
    let mut waiting: Vec<(&mut Run<T>, &Group<T>)> = Vec::new();
    let mut size = 0;
    for (run, group) in runs {
        let own = largest::<T>(group);
        let fits = run.goes_together(group)
            && waiting.first().is_none_or(|(_, first)| first.1.len() == group.1.len());
        if !fits || size + own > most(device) {
            flush(&mut waiting, tuned)?;
            size = 0;
        }
        if fits {
            waiting.push((run, group));
            size += own;
        } else {
            flush(&mut vec![(run, group)], tuned)?;
        }
    }
    flush(&mut waiting, tuned)
}

/// The size of the largest batch of a step.
fn largest<T: Task>(group: &Group<T>) -> u64 {
    group.1.iter().map(|batch| batch.size).max().unwrap_or(0)
}

/// One step of these runs together; of one, as it makes it alone.
fn flush<T: Task>(
    runs: &mut Vec<(&mut Run<T>, &Group<T>)>,
    tuned: &mut LnTuningModel,
) -> Result<()> {
    let mut runs = std::mem::take(runs);
    match runs.as_mut_slice() {
        [] => Ok(()),
        [(run, group)] => {
            tuned.set_adapter(run.adapter())?;
            run.step(group)
        }
        runs => together(runs),
    }
}

fn together<T: Task>(runs: &mut [(&mut Run<T>, &Group<T>)]) -> Result<()> {
    let first = &runs[0].0;
    let (task, recompute) = (first.task(), first.recompute());
    tch::manual_seed(step_seed(first.settings().seed, first.state.step, 0));
    let mut sums: Vec<Option<Tensor>> = Vec::new();
    for (run, _) in runs.iter_mut() {
        run.begin_update()?;
        sums.push(None);
    }
    for at in 0..runs[0].1 .1.len() {
        let adapters: Vec<String> = runs.iter().map(|(run, _)| run.adapter().to_owned()).collect();
        let groups: Vec<&Group<T>> = runs.iter().map(|(_, group)| *group).collect();
        let batches = groups.iter().zip(&adapters).map(|((_, group), adapter)| {
            let over = group.iter().map(|batch| batch.targets).sum::<i64>().max(1);
            OfRun { batch: &group[at], over, adapter }
        });
        let batches: Vec<OfRun<T>> = batches.collect();
        let optimizers = runs.iter_mut().map(|(run, _)| &mut run.optimizer);
        let losses = backward(task, &batches, recompute, optimizers)?;
        for (sum, loss) in sums.iter_mut().zip(losses) {
            *sum = Some(match sum.take() {
                Some(sum) => sum.f_add(&loss)?,
                None => loss,
            });
        }
    }
    for ((run, group), sum) in runs.iter_mut().zip(sums) {
        run.end_update(group, sum.context("a step without batches")?)?;
    }
    Ok(())
}

/// Adds to each optimiser the gradient of its batch, and gives the losses.
pub(super) fn backward<'o, T: Task>(
    task: &T,
    batches: &[OfRun<T>],
    recompute: Option<Recompute>,
    optimizers: impl IntoIterator<Item = &'o mut Optimizer>,
) -> Result<Vec<Tensor>> {
    let mut losses = Vec::new();
    let total = |losses: &[Tensor]| -> ln_tuning::Result<Tensor> {
        Ok(Tensor::f_stack(losses, 0)?.f_sum(losses[0].f_kind()?)?)
    };
    match recompute {
        Some(recompute) => {
            Optimizer::backward_mixed_recompute(optimizers, &recompute, |tape| {
                losses = task.losses_together(batches, tape)?;
                Ok(vec![total(&losses)?])
            })?;
        }
        None => {
            losses = task.losses_together(batches, &mut Tape::off())?;
            Optimizer::backward_mixed(optimizers, &total(&losses)?)?;
        }
    }
    losses.iter().map(|loss| Ok(loss.f_detach()?)).collect()
}
