//! A whole step of an optimiser as a graph needs it: from the loss to the weights in one call, a key that tells when
//! something else would be computed, and what a replay changes on the host.

use std::cell::RefCell;

use tch::Tensor;

use super::clipping::clip_norm;
use super::filled::{Filled, Run};
use super::group::settings;
use super::loss_scale::{Factor, LossScale};
use super::optimizer::Optimizer;
use crate::error::{refuse, Result};

/// Everything that a captured step has taken for granted: addresses on the device, and numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key(Vec<usize>);

impl Optimizer {
    /// Goes backward, clips and updates. Gives the norm of the gradient before clipping.
    pub(super) fn whole_step(&mut self, loss: &Tensor, clip: Option<f64>) -> Result<Tensor> {
        let norm = RefCell::new(None);
        self.accumulate(loss, |_, gradients| {
            *norm.borrow_mut() = Some(match clip {
                Some(max) => clip_norm(gradients, max)?,
                None => gradients.flat()?.f_norm()?,
            });
            Ok(())
        })?;
        Ok(norm.into_inner().unwrap_or_default())
    }

    /// Refuses a step that is not one backward pass and one update. From now on, numbers that change from step to step
    /// are read from the device.
    pub(super) fn begin_whole_step(&mut self) -> Result<()> {
        if self.accumulation != 1 {
            refuse!(
                InvalidState,
                "the gradients of {} batches are accumulated for an update, and a graphed step is one batch and one \
                 update: call `set_accumulation(1)`, or step without a graph",
                self.accumulation
            );
        }
        self.state.filled.get_or_insert_default();
        Ok(())
    }

    /// The reason why steps of this optimiser cannot be captured, if there is one.
    pub(super) fn cannot_be_captured(&self) -> Option<&'static str> {
        #[cfg(feature = "distributed")]
        if self.ranks.group.is_some() {
            return Some("processes add up their gradients in the middle of a step");
        }
        self.by_name.then_some(
            "the optimizer is one of `optimizer_for`, for batches whose rows name adapters",
        )
    }

    pub(super) fn key(&mut self, clip: Option<f64>) -> Result<Key> {
        self.with_adapter(|this, attachment| {
            this.check(attachment)?;
            let mut all: Vec<usize> = attachment.variables.addresses().collect();
            all.push(this.adapter_id as usize);
            all.extend(clip.map(|clip| clip.to_bits() as usize));
            match (&this.loss_scale, this.loss_scale.factor()) {
                (LossScale::Fixed(scale), _) => all.push(scale.to_bits() as usize),
                (LossScale::Dynamic(_), Factor::OnDevice(scale)) => {
                    all.push(scale.data_ptr() as usize);
                }
                (LossScale::Dynamic(_), Factor::Number(_)) => (),
            }
            all.extend(this.state.addresses());
            let (adapter, leaves) = attachment.graded(&this.adapter)?;
            all.push(adapter.flat.master().data_ptr() as usize);
            all.extend((0..adapter.flat.slots().len()).map(|slot| adapter.flat.address(slot)));
            all.extend(adapter.gradients.addresses(&leaves));
            Ok(Key(all))
        })
    }

    /// True for a step that is computed in another way, whatever the ones before: at a rate of 0, and behind one that has
    /// failed between its gradients and its update.
    pub(super) fn is_exception(&self) -> bool {
        self.accumulated != 0 || self.groups.values().any(|group| group.lr == 0.)
    }

    /// The update after those that were made, of the slots of an earlier one; `None` if another one would be computed.
    pub(super) fn next_update(&self, runs: &[Run]) -> Option<Vec<Run>> {
        if self.is_exception() {
            return None;
        }
        let next = self.state.next(runs, settings(&self.groups, &self.slot_groups))?;
        (!next.is_empty()).then_some(next)
    }

    /// The runs of the last update.
    pub(super) fn last_update(&self) -> Vec<Run> {
        self.state.filled.as_ref().map_or(Vec::new(), |filled| filled.runs().to_vec())
    }

    /// Fills in the numbers of the next update.
    pub(super) fn fill(&mut self, next: &[Run]) -> Result<()> {
        let skips = self.state.skips();
        self.state.filled.as_mut().map_or(Ok(()), |filled| filled.fill(next, skips))
    }

    /// Makes a step that is being captured: its numbers are filled in already. It does not count: a replay makes it.
    pub(super) fn capturing<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.state.steps.clone();
        let set = |this: &mut Self, capturing| {
            this.state
                .filled
                .iter_mut()
                .for_each(|filled: &mut Filled| filled.capturing = capturing);
        };
        set(self, true);
        let made = step(self);
        set(self, false);
        self.state.steps = before;
        self.accumulated = 0;
        made
    }

    /// For each slot, true if the last backward pass gave it a gradient.
    pub(super) fn presence(&mut self) -> Result<Vec<bool>> {
        self.with_adapter(|this, attachment| {
            Ok(attachment.adapter(&this.adapter)?.gradients.presence())
        })
    }

    /// Counts a replay of an update whose numbers were filled in, with gradients of the slots that are `present`.
    pub(super) fn replayed(&mut self, present: &[bool]) -> Result<()> {
        self.with_adapter(|this, attachment| {
            this.state.advance();
            let (adapter, leaves) = attachment.graded(&this.adapter)?;
            adapter.gradients.rewritten(&leaves, present)?;
            attachment.outdate(&this.adapter, |slot| present[slot])
        })
    }
}
