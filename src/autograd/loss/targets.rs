//! The target classes, and the tokens that are not ignored.

use tch::{Device, Kind, Tensor};

use crate::device::trace::{check_not_traced, sent_numbers};
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;

pub(super) struct Targets {
    /// The indices of the computed tokens, in order; `None`: all.
    pub(super) kept: Option<Tensor>,
    /// `[computed tokens, 1]`.
    pub(super) classes: Tensor,
    /// `[computed tokens, 1]`: 0 for ignored tokens, 1 for the others; `None` if only the others are computed.
    pub(super) weights: Option<Tensor>,
    /// The number of tokens that are not ignored.
    pub(super) count: Count,
}

/// A number of tokens: known, or a scalar on the device.
pub(super) enum Count {
    Known(f64),
    OnDevice(Tensor),
}

impl Targets {
    /// Drops ignored tokens if the targets are on the CPU; elsewhere, finding them would wait for the device. So are
    /// those only weighted by 0 for which `left_out`, on the device, is true.
    pub(super) fn new(
        targets: &Tensor,
        ignore_index: i64,
        vocab: i64,
        kind: Kind,
        device: Device,
        left_out: Option<&Tensor>,
    ) -> Result<Self> {
        check_not_traced("the targets of a loss")?;
        let targets = targets.f_detach()?.f_to_kind(Kind::Int64)?.f_reshape([-1])?;
        let left_out = left_out.map(|left_out| left_out.f_reshape([-1])).transpose()?;
        let weighted = |counts: &Tensor| -> Result<(Option<Tensor>, Count)> {
            let weights = counts.f_to_kind(kind)?.f_unsqueeze(1)?;
            let count = Count::OnDevice(weights.f_sum(kind)?);
            Ok((Some(weights), count))
        };
        if targets.device() != Device::Cpu {
            let targets = targets.f_to_device(device)?;
            let mut counts = targets.f_ne_number(ignore_index)?;
            if let Some(left_out) = left_out {
                counts = counts.f_logical_and(&left_out.f_logical_not()?)?;
            }
            let classes = targets.f_mul(&targets.f_ne_number(ignore_index)?)?.f_unsqueeze(1)?;
            let (weights, count) = weighted(&counts)?;
            return Ok(Targets { kept: None, classes, weights, count });
        }
        let all = Vec::<i64>::try_from(&targets)?;
        let (kept, classes): (Vec<i64>, Vec<i64>) =
            (0..).zip(&all).filter(|(_, target)| **target != ignore_index).unzip();
        if let Some(wrong) = classes.iter().find(|class| !(0..vocab).contains(*class)) {
            refuse!(
                InvalidArgument,
                "the target {wrong} is not in the vocabulary of {vocab}: expected 0 to {}, or {ignore_index} for \
                 ignored tokens",
                vocab - 1
            );
        }
        let (number, dropped) = (kept.len(), kept.len() < all.len());
        let both = if dropped { [classes, kept].concat() } else { classes };
        let both = sent_numbers(&both, device)?;
        let part = |start: usize| both.f_narrow(0, start as i64, number as i64);
        let kept = dropped.then(|| part(number)).transpose()?;
        let (weights, count) = match (left_out, &kept) {
            (None, _) => (None, Count::Known(number as f64)),
            (Some(left_out), None) => weighted(&left_out.f_logical_not()?)?,
            (Some(left_out), Some(kept)) => {
                weighted(&left_out.f_index_select(0, kept)?.f_logical_not()?)?
            }
        };
        Ok(Targets { classes: part(0)?.f_unsqueeze(1)?, kept, weights, count })
    }

    /// The number of computed tokens.
    pub(super) fn len(&self) -> i64 {
        self.classes.size()[0]
    }
}
