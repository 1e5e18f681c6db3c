//! Steps of several runs at once: their rows go through the model together, each with the adapter of its run.

use anyhow::Result;
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::{LnTuningModel, Optimizer};
use tch::{Device, Tensor};

use super::groups::groups;
use crate::train::order::step_seed;
use crate::train::ranks::Ranks;
use crate::train::task::{Extent, OfRun, Task};
use crate::train::trainer::{Group, Run};

/// Places that go through the model at once. A run with half as many of its own gains nothing by the rows of others: its
/// products are as fast as they become.
pub(super) fn most(device: Device) -> u64 {
    if device == Device::Cpu {
        512
    } else {
        8192
    }
}

/// One step of each of these runs, with its batches: of as many runs together as gain by it. The gradients of all of them
/// are reduced over the ranks at once; which of them go together may differ from rank to rank.
pub(super) fn step<T: Task>(
    mut runs: Vec<(&mut Run<T>, &Group<T>)>,
    device: Device,
    ranks: &Ranks,
    tuned: &mut LnTuningModel,
) -> Result<()> {
    let extents: Vec<Vec<Extent>> = runs.iter().map(|(run, group)| run.extents(group)).collect();
    runs.iter_mut().try_for_each(|(run, _)| run.begin_update())?;
    let mut own: Vec<Tensor> = runs.iter().map(|_| Tensor::new()).collect();
    let mut runs: Vec<Option<(&mut Run<T>, &Group<T>)>> = runs.into_iter().map(Some).collect();
    for places in groups(&extents, most(device)) {
        let mut part: Vec<_> = places.iter().filter_map(|at| runs[*at].take()).collect();
        let losses = match part.as_mut_slice() {
            [(run, group)] => {
                tuned.set_adapter(run.adapter())?;
                vec![run.backward(group)?]
            }
            part => together(part, ranks)?,
        };
        for ((at, run), loss) in places.into_iter().zip(part).zip(losses) {
            (runs[at], own[at]) = (Some(run), loss);
        }
    }
    let mut runs: Vec<(&mut Run<T>, &Group<T>)> = runs.into_iter().flatten().collect();
    let targets = runs.iter().map(|(_, group)| targets::<T>(group));
    let shares: Vec<(&Tensor, i64)> = own.iter().zip(targets).collect();
    let losses = ranks.reduce_all(runs.iter_mut().map(|(run, _)| &mut run.optimizer), &shares)?;
    for (((run, group), loss), own) in runs.iter_mut().zip(losses).zip(own) {
        run.end_update(group, loss, own)?;
    }
    Ok(())
}

fn targets<T: Task>(group: &Group<T>) -> i64 {
    group.1.iter().map(|batch| batch.targets).sum()
}

/// Adds the gradient of the batches of each of these runs, from passes of all of them. Gives their mean losses.
fn together<T: Task>(runs: &mut [(&mut Run<T>, &Group<T>)], ranks: &Ranks) -> Result<Vec<Tensor>> {
    let first = &runs[0].0;
    let (task, recompute) = (first.task(), first.recompute());
    tch::manual_seed(step_seed(first.settings().seed, first.state.step, ranks.rank()));
    let adapters: Vec<String> = runs.iter().map(|(run, _)| run.adapter().to_owned()).collect();
    let groups: Vec<&Group<T>> = runs.iter().map(|(_, group)| *group).collect();
    let list = |at: usize| {
        let batches = groups.iter().zip(&adapters).map(|(group, adapter)| {
            let over = targets::<T>(group).max(1);
            OfRun { batch: &group.1[at], over, adapter }
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
    // A rank may have no batch in a step.
    Ok(sums.into_iter().map(|sum| sum.unwrap_or_else(|| Tensor::from(0_f32))).collect())
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
