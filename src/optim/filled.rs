//! The numbers of an update on the device: a step that is captured reads them there, where they are filled in before each
//! replay.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::algorithm::Algorithm;
use super::numbers::{Numbers, COUNT};
use crate::device::transfer::send_into;
use crate::error::{refuse, Result};

/// Those of all runs of slots, on the device.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// `[runs, COUNT]` in f64.
    all: Option<Tensor>,
    runs: Vec<Run>,
    /// They stand there for a step that is being captured: another one than before is refused.
    pub(super) capturing: bool,
}

/// Neighbouring slots with the same settings and history.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) slots: Range<usize>,
    pub(super) algorithm: Algorithm,
    /// The number of its update, from 1.
    pub(super) step: i64,
    pub(super) lr: f64,
}

/// True if the same is computed for both, but for the numbers.
pub(super) fn are_like(these: &[Run], those: &[Run]) -> bool {
    these.len() == those.len() && these.iter().zip(those).all(|(a, b)| a.is_like(b))
}

impl Run {
    fn is_like(&self, other: &Run) -> bool {
        self.slots == other.slots
            && (self.step == 1) == (other.step == 1)
            && (self.lr == 0.) == (other.lr == 0.)
            && self.algorithm.is_whole_same(&other.algorithm)
    }
}

impl Filled {
    /// Fills in the numbers of an update of these runs, on the device of `like`, and gives those of each in its kind.
    pub(super) fn of(
        &mut self,
        runs: &[Run],
        skips: bool,
        kind: Kind,
        like: &Tensor,
    ) -> Result<Vec<Numbers>> {
        let shape = [runs.len() as i64, COUNT as i64];
        let there = |all: &&Tensor| all.device() == like.device() && all.size() == shape;
        let there = self.all.as_ref().filter(there).is_some();
        if self.capturing && !(there && are_like(&self.runs, runs)) {
            refuse!(
                Unsupported,
                "a step that is captured updates other tensors, or in another way, than the step before"
            );
        }
        if !there {
            self.all = Some(Tensor::f_empty(shape, (Kind::Double, like.device()))?);
        }
        if !self.capturing {
            self.fill(runs, skips)?;
        }
        let Some(all) = &self.all else { return Ok(Vec::new()) };
        let own = all.f_to_kind(kind)?;
        let of_run = |all: &Tensor, run: usize| -> Result<[Tensor; COUNT]> {
            let all = all.f_select(0, run as i64)?;
            Ok([all.f_select(0, 0)?, all.f_select(0, 1)?, all.f_select(0, 2)?])
        };
        (0..runs.len())
            .map(|run| Ok(Numbers::OnDevice(of_run(all, run)?, of_run(&own, run)?)))
            .collect()
    }

    /// Fills in the numbers of an update of these runs.
    pub(super) fn fill(&mut self, runs: &[Run], skips: bool) -> Result<()> {
        let Some(all) = &self.all else { return Ok(()) };
        let of = |run: &Run| run.algorithm.numbers(run.step, run.lr, skips);
        let numbers: Vec<f64> = runs.iter().flat_map(of).collect();
        send_into(all, &Tensor::f_from_slice(&numbers)?.f_view_as(all)?)?;
        self.runs = runs.to_vec();
        Ok(())
    }

    /// Those of the last update.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The address of the numbers.
    pub(super) fn address(&self) -> usize {
        self.all.as_ref().map_or(0, |all| all.data_ptr() as usize)
    }
}
