//! Steps of several runs at once: their rows go through the model together, each with the adapter of its run.

use std::ops::Range;

use anyhow::Result;
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::{LnTuningModel, Optimizer};
use tch::{Device, Tensor};

use crate::train::order::step_seed;
use crate::train::ranks::Ranks;
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

/// One step of each of these runs, with its batches: of as many runs together as gain by it. The gradients of all of them
/// are reduced over the ranks at once; which of them go together may differ from rank to rank.
pub(super) fn step<T: Task>(
    mut runs: Vec<(&mut Run<T>, &Group<T>)>,
    device: Device,
    ranks: &Ranks,
    tuned: &mut LnTuningModel,
) -> Result<()> {
    runs.iter_mut().try_for_each(|(run, _)| run.begin_update())?;
    let mut own = Vec::with_capacity(runs.len());
    for part in parts(&runs, most(device)) {
        match &mut runs[part] {
            [(run, group)] => {
                tuned.set_adapter(run.adapter())?;
                own.push(run.backward(group)?);
            }
            runs => own.extend(together(runs, ranks)?),
        }
    }
    let targets = runs.iter().map(|(_, group)| targets::<T>(group));
    let shares: Vec<(&Tensor, i64)> = own.iter().zip(targets).collect();
    let losses = ranks.reduce_all(runs.iter_mut().map(|(run, _)| &mut run.optimizer), &shares)?;
    for (((run, group), loss), own) in runs.iter_mut().zip(losses).zip(own) {
        run.end_update(group, loss, own)?;
    }
    Ok(())
}

/// The runs whose rows go through the model together: neighbours, with `most` tokens at once.
fn parts<T: Task>(runs: &[(&mut Run<T>, &Group<T>)], most: u64) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let (mut size, mut takes_more) = (0, false);
    for (at, (run, group)) in runs.iter().enumerate() {
        let own = largest::<T>(group);
        let fits = run.goes_together(group);
        match parts.last_mut() {
            Some(part)
                if takes_more
                    && fits
                    && size + own <= most
                    && runs[part.start].1 .1.len() == group.1.len() =>
            {
                part.end = at + 1;
                size += own;
            }
            _ => {
                parts.push(at..at + 1);
                (size, takes_more) = (own, fits);
            }
        }
    }
    parts
}

/// The size of the largest batch of a step.
fn largest<T: Task>(group: &Group<T>) -> u64 {
    group.1.iter().map(|batch| batch.size).max().unwrap_or(0)
}

fn targets<T: Task>(group: &Group<T>) -> i64 {
    group.1.iter().map(|batch| batch.targets).sum()
}

/// Adds the gradient of the batches of each of these runs, from passes of all of them. Gives their mean losses.
fn together<T: Task>(runs: &mut [(&mut Run<T>, &Group<T>)], ranks: &Ranks) -> Result<Vec<Tensor>> {
    let first = &runs[0].0;
    let (task, recompute) = (first.task(), first.recompute());
    tch::manual_seed(step_seed(first.settings().seed, first.state.step, ranks.rank()));
    let mut sums: Vec<Option<Tensor>> = runs.iter().map(|_| None).collect();
    for at in 0..runs[0].1 .1.len() {
        let adapters: Vec<String> = runs.iter().map(|(run, _)| run.adapter().to_owned()).collect();
        let groups: Vec<&Group<T>> = runs.iter().map(|(_, group)| *group).collect();
        let batches = groups.iter().zip(&adapters).map(|(group, adapter)| {
            let over = targets::<T>(group).max(1);
            OfRun { batch: &group.1[at], over, adapter }
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
    // A rank may have no batch in a step.
    Ok(sums.into_iter().map(|sum| sum.unwrap_or_else(|| Tensor::from(0_f32))).collect())
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
