//! The target classes, and the tokens that are not ignored.

use tch::{Device, Kind, Tensor};

use crate::error::{refuse, Result};

pub(super) struct Targets {
    /// The indices of the computed tokens, in order; `None`: all.
    pub(super) kept: Option<Tensor>,
    /// `[computed tokens, 1]`.
    pub(super) classes: Tensor,
    /// `[tokens, 1]`: 0 for ignored tokens, 1 for the others; `None` if only the others are computed.
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
    /// Drops ignored tokens if the targets are on the CPU; elsewhere, finding them would wait for the device.
    pub(super) fn new(
        targets: &Tensor,
        ignore_index: i64,
        vocab: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let targets = targets.f_detach()?.f_to_kind(Kind::Int64)?.f_reshape([-1])?;
        if targets.device() != Device::Cpu {
            let targets = targets.f_to_device(device)?;
            let counts = targets.f_ne(ignore_index)?;
            let classes = targets.f_mul(&counts)?.f_unsqueeze(1)?;
            let weights = counts.f_to_kind(kind)?.f_unsqueeze(1)?;
            let count = Count::OnDevice(weights.f_sum(kind)?);
            return Ok(Targets { kept: None, classes, weights: Some(weights), count });
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
        let count = Count::Known(kept.len() as f64);
        let dropped = kept.len() < all.len();
        let kept = dropped.then(|| sent(&kept, device)).transpose()?;
        let classes = sent(&classes, device)?.f_unsqueeze(1)?;
        Ok(Targets { kept, classes, weights: None, count })
    }

    /// The number of computed tokens.
    pub(super) fn len(&self) -> i64 {
        self.classes.size()[0]
    }

    /// The rows of `tensor` for a chunk of the computed tokens.
    pub(super) fn rows(&self, tensor: &Tensor, start: i64, len: i64) -> Result<Tensor> {
        match &self.kept {
            None => Ok(tensor.f_narrow(0, start, len)?),
            Some(kept) => Ok(tensor.f_index_select(0, &kept.f_narrow(0, start, len)?)?),
        }
    }
}

/// Copies to the device without waiting for it.
fn sent(values: &[i64], device: Device) -> Result<Tensor> {
    let values = Tensor::f_from_slice(values)?;
    match device {
        Device::Cpu => Ok(values),
        Device::Cuda(_) => {
            Ok(values.f_pin_memory(device)?.f_to_device_(device, Kind::Int64, true, false)?)
        }
        _ => Ok(values.f_to_device(device)?),
    }
}
