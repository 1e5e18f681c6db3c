//! The place of this process among the ranks of a run, and what it does with the others.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

#[cfg(not(distributed))]
use anyhow::ensure;
use anyhow::{Error, Result};
use ln_tuning::Optimizer;
use tch::Tensor;

#[cfg(distributed)]
use super::guard;
use super::launcher::Place;
use crate::device::Local;

#[cfg(distributed)]
use ln_tuning::distributed::{ProcessGroup, ReduceOp};

/// The place of this process among the ranks of a run, and the way to the others.
#[derive(Clone)]
pub struct Ranks(Arc<Inner>);

struct Inner {
    place: Place,
    #[cfg(distributed)]
    group: Option<Arc<ProcessGroup>>,
    phase: AtomicU8,
}

/// The present work of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// All ranks prepare: each is about to say if it could.
    Preparing,
    /// All ranks make steps together.
    Stepping,
    /// One of them failed, and all know it.
    Failed,
}

impl Ranks {
    /// One process without others.
    pub fn alone() -> Self {
        Ranks::new(Place::ALONE)
    }

    fn new(place: Place) -> Self {
        Ranks(Arc::new(Inner {
            place,
            #[cfg(distributed)]
            group: None,
            phase: AtomicU8::new(Phase::Preparing as u8),
        }))
    }

    /// The place that the launcher gave to this process. Others are not met yet.
    ///
    /// # Errors
    /// If the launcher's variables are no numbers, or lack one another.
    pub fn of_launcher() -> Result<Self> {
        Ok(Ranks::new(Place::read(|name| std::env::var(name).ok())?))
    }

    /// Meets the other ranks. That, and all that they do together, takes so long at most.
    #[cfg(distributed)]
    pub fn connect(self, timeout: Duration) -> Result<Self> {
        if self.are_one() {
            guard::watch()?;
            return Ok(self);
        }
        let place = self.0.place;
        // Also of those that are quiet.
        let notice = |words: &str| eprintln!("{words} (--ddp-timeout)");
        let group = ProcessGroup::from_env_with_notice(timeout, notice);
        let group = group.map_err(|error| self.named(error.into()))?;
        let group = Some(Arc::new(group));
        let phase = AtomicU8::new(Phase::Preparing as u8);
        Ok(Ranks(Arc::new(Inner { place, group, phase })))
    }

    #[cfg(not(distributed))]
    pub fn connect(self, _timeout: Duration) -> Result<Self> {
        ensure!(
            self.are_one(),
            "WORLD_SIZE is {}, and this ln-tuning trains in one process: build it with the feature 'distributed', \
             which it has by default",
            self.size()
        );
        Ok(self)
    }

    /// From 0.
    pub fn rank(&self) -> usize {
        self.0.place.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.0.place.size
    }

    /// The place among the ranks of this machine.
    pub fn local(&self) -> Local {
        self.0.place.local
    }

    /// True for the rank that writes and prints.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// True if there is one rank.
    pub fn are_one(&self) -> bool {
        self.size() == 1
    }

    /// The time for which ranks wait for each other; none for one that is alone.
    pub fn timeout(&self) -> Option<Duration> {
        #[cfg(distributed)]
        return self.0.group.as_ref().map(|group| group.timeout());
        #[cfg(not(distributed))]
        None
    }

    /// Lets the gradients of an optimiser be those of all ranks.
    pub fn join(&self, optimizer: &mut Optimizer) -> Result<()> {
        #[cfg(distributed)]
        if let Some(group) = &self.0.group {
            optimizer.set_process_group(group.clone())?;
        }
        let _ = optimizer;
        Ok(())
    }

    /// The mean loss over the targets of all ranks, whose gradient takes the place of this rank's.
    pub fn reduce(&self, optimizer: &mut Optimizer, own: &Tensor, targets: i64) -> Result<Tensor> {
        #[cfg(distributed)]
        if self.0.group.is_some() {
            return Ok(optimizer.all_reduce(own, targets)?.0);
        }
        let _ = (optimizer, targets);
        Ok(own.shallow_clone())
    }

    /// [`reduce`](Self::reduce) for several optimisers at once, each with its own loss and targets.
    pub fn reduce_all<'o>(
        &self,
        optimizers: impl IntoIterator<Item = &'o mut Optimizer>,
        own: &[(&Tensor, i64)],
    ) -> Result<Vec<Tensor>> {
        let all = Optimizer::all_reduce_mixed(optimizers, own)?;
        Ok(all.into_iter().map(|(loss, _)| loss).collect())
    }

    /// Adds up each number over the ranks.
    pub fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        if self.are_one() || numbers.is_empty() {
            return Ok(());
        }
        let sum = self.summed(Tensor::f_from_slice(numbers)?)?;
        numbers.copy_from_slice(&Vec::<f64>::try_from(sum)?);
        Ok(())
    }

    /// The bytes that rank 0 has; those of others do not count.
    pub fn bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        if self.are_one() {
            return Ok(bytes);
        }
        let bytes = if self.is_first() { bytes } else { Vec::new() };
        let mut length = [bytes.len() as f64];
        self.sum(&mut length)?;
        let mut whole = bytes;
        whole.resize(length[0] as usize, 0);
        if whole.is_empty() {
            return Ok(whole);
        }
        Ok(Vec::try_from(self.summed(Tensor::f_from_slice(&whole)?)?)?)
    }

    /// The error, with the rank that has it.
    pub(super) fn named(&self, error: Error) -> Error {
        let place = format!("rank {}", self.rank());
        if error.to_string().starts_with(&place) {
            return error;
        }
        error.context(place)
    }

    /// Refuses ranks that have not the same.
    pub fn check_same(&self, what: &str, value: &str) -> Result<()> {
        #[cfg(distributed)]
        if let Some(group) = &self.0.group {
            group.verify_equal([(what, value)])?;
        }
        let _ = (what, value);
        Ok(())
    }

    /// Runs steps that all ranks make together. An error in them is for the others the end of a connection.
    pub fn stepping<T>(&self, steps: impl FnOnce() -> Result<T>) -> Result<T> {
        self.set(Phase::Stepping);
        let done = steps()?;
        self.set(Phase::Preparing);
        Ok(done)
    }

    /// The sum of tensors on the CPU.
    #[cfg(distributed)]
    pub(super) fn summed(&self, mut tensor: Tensor) -> Result<Tensor> {
        if let Some(group) = &self.0.group {
            group.all_reduce(&mut tensor, ReduceOp::Sum)?;
        }
        Ok(tensor)
    }

    #[cfg(not(distributed))]
    pub(super) fn summed(&self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::SeqCst) {
            phase if phase == Phase::Preparing as u8 => Phase::Preparing,
            phase if phase == Phase::Stepping as u8 => Phase::Stepping,
            _ => Phase::Failed,
        }
    }

    pub(super) fn set(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::SeqCst);
    }
}
