//! Steps of several runs at once: their rows go through the model together, each with the adapter of its run.

use anyhow::{Context, Result};
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::{LnTuningModel, Optimizer};
use tch::{Device, Tensor};

use super::groups::groups;
use crate::train::order::step_seed;
use crate::train::task::{Extent, OfRun, Task};
use crate::train::trainer::{Group, Run};

/// Places that go through the model at once. On a CPU, a run of half as many gains a tenth by the rows of another, and
/// one of as many nothing: its products are as fast as they become.
pub(super) fn most(device: Device) -> u64 {
    if device == Device::Cpu {
        256
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
    let extents: Vec<Vec<Extent>> = runs.iter().map(|(run, group)| run.extents(group)).collect();
    let mut runs: Vec<Option<(&mut Run<T>, &Group<T>)>> = runs.into_iter().map(Some).collect();
    for places in groups(&extents, most(device)) {
        let mut own: Vec<_> = places.into_iter().filter_map(|at| runs[at].take()).collect();
        match own.as_mut_slice() {
            [(run, group)] => {
                tuned.set_adapter(run.adapter())?;
                run.step(group)?;
            }
            own => together(own)?,
        }
    }
    Ok(())
}

fn together<T: Task>(runs: &mut [(&mut Run<T>, &Group<T>)]) -> Result<()> {
    let first = &runs[0].0;
    let (task, recompute) = (first.task(), first.recompute());
    tch::manual_seed(step_seed(first.settings().seed, first.state.step, 0));
    for (run, _) in runs.iter_mut() {
        run.begin_update()?;
    }
    let adapters: Vec<String> = runs.iter().map(|(run, _)| run.adapter().to_owned()).collect();
    let groups: Vec<&Group<T>> = runs.iter().map(|(_, group)| *group).collect();
    let list = |at: usize| {
        let batches = groups.iter().zip(&adapters).map(|((_, group), adapter)| {
            let over = group.iter().map(|batch| batch.targets).sum::<i64>().max(1);
            OfRun { batch: &group[at], over, adapter }
        });
        batches.collect::<Vec<OfRun<T>>>()
    };
    let lists: Vec<Vec<OfRun<T>>> = (0..groups[0].1.len()).map(list).collect();
    // As where a run is alone: all batches go through a block at once, or one after the other through the model.
    let at_once = if task.goes_block_by_block() { lists.len() } else { 1 };
    let mut sums: Vec<Option<Tensor>> = runs.iter().map(|_| None).collect();
    for lists in lists.chunks(at_once.max(1)) {
        let optimizers = runs.iter_mut().map(|(run, _)| &mut run.optimizer);
        for losses in backward(task, lists, recompute, optimizers)? {
            for (sum, loss) in sums.iter_mut().zip(losses) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum.f_add(&loss)?,
                    None => loss,
                });
            }
        }
    }
    for ((run, group), sum) in runs.iter_mut().zip(sums) {
        run.end_update(group, sum.context("a step without batches")?)?;
    }
    Ok(())
}

/// Adds to each optimiser the gradient of its batches, and gives their losses, list by list.
pub(super) fn backward<'o, T: Task>(
    task: &T,
    lists: &[Vec<OfRun<T>>],
    recompute: Option<Recompute>,
    optimizers: impl IntoIterator<Item = &'o mut Optimizer>,
) -> Result<Vec<Vec<Tensor>>> {
    let mut losses = Vec::new();
    let total = |losses: &[Vec<Tensor>]| -> ln_tuning::Result<Tensor> {
        let all: Vec<&Tensor> = losses.iter().flatten().collect();
        Ok(Tensor::f_stack(&all, 0)?.f_sum(all[0].f_kind()?)?)
    };
    match recompute {
        Some(recompute) => {
            Optimizer::backward_mixed_recompute(optimizers, &recompute, |tape| {
                losses = task.losses_together(lists, tape)?;
                Ok(vec![total(&losses)?])
            })?;
        }
        None => {
            losses = task.losses_together(lists, &mut Tape::off())?;
            Optimizer::backward_mixed(optimizers, &total(&losses)?)?;
        }
    }
    let detached = |own: &Vec<Tensor>| own.iter().map(|loss| Ok(loss.f_detach()?)).collect();
    losses.iter().map(detached).collect()
}
