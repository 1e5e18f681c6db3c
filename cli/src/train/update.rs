//! One update of the weights from a group of batches.

use anyhow::Result;
use ln_tuning::recompute::Recompute;
use ln_tuning::Optimizer;
use tch::Tensor;

use super::order::step_seed;
use super::ranks::Ranks;
use super::settings::Settings;
use super::task::{backward, Of, Task};

/// Updates with `factor` times the rates of the settings. Random numbers are those of step `step`, from 0. The batches
/// are those of this rank. Gives the loss, the gradient's norm before clipping, and the loss of this rank's batches, as
/// scalars on the device. With one rank, nothing here waits for it.
pub fn update<T: Task>(
    task: &T,
    group: &[Of<T>],
    settings: &Settings,
    recompute: Option<&Recompute>,
    optimizer: &mut Optimizer,
    ranks: &Ranks,
    (step, factor): (u64, f64),
) -> Result<[Tensor; 3]> {
    begin(settings, optimizer, factor)?;
    let (own, targets) = of_rank(task, group, settings, recompute, optimizer, ranks, step)?;
    let loss = ranks.reduce(optimizer, &own, targets)?;
    let grad_norm = end(settings, optimizer)?;
    Ok([loss, grad_norm, own])
}

/// Adds the gradient of this rank's batches, and gives their mean loss and targets.
pub fn of_rank<T: Task>(
    task: &T,
    group: &[Of<T>],
    settings: &Settings,
    recompute: Option<&Recompute>,
    optimizer: &mut Optimizer,
    ranks: &Ranks,
    step: u64,
) -> Result<(Tensor, i64)> {
    tch::manual_seed(step_seed(settings.seed, step, ranks.rank()));
    let targets = group.iter().map(|batch| batch.targets).sum::<i64>();
    Ok((backward(task, group, targets.max(1), recompute, optimizer)?, targets))
}

/// Before the gradients of an update.
pub fn begin(settings: &Settings, optimizer: &mut Optimizer, factor: f64) -> Result<()> {
    settings.set_rates(optimizer, factor)?;
    Ok(optimizer.zero_grad()?)
}

/// Behind them: gives their norm before clipping, and updates.
pub fn end(settings: &Settings, optimizer: &mut Optimizer) -> Result<Tensor> {
    let grad_norm = match settings.clip_norm {
        Some(max) => optimizer.clip_grad_norm(max)?,
        None => optimizer.grad_norm()?,
    };
    optimizer.step()?;
    Ok(grad_norm)
}
