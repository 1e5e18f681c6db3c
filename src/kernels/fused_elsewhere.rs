//! The fused functions where there are none: libtorch's operators are used.
// Models use most of them.
#![cfg_attr(not(feature = "models"), allow(dead_code))]

use tch::Tensor;

use super::fused_forms::{Attended, CrossEntropy, Gate, NormForm};
use crate::error::Result;

pub(crate) fn is_for(_x: &Tensor) -> Result<bool> {
    Ok(false)
}

pub(crate) fn norm(
    _x: &Tensor,
    _weight: Option<&Tensor>,
    _bias: Option<&Tensor>,
    _form: NormForm,
    _eps: f64,
) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn added_norm(
    _x: &Tensor,
    _added: &Tensor,
    _weight: Option<&Tensor>,
    _bias: Option<&Tensor>,
    _form: NormForm,
    _eps: f64,
) -> Result<Option<(Tensor, Tensor)>> {
    Ok(None)
}

pub(crate) fn gated(_gate: &Tensor, _up: &Tensor, _activation: Gate) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn gated_in_one(_both: &Tensor, _activation: Gate) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn turned(
    _both: [&Tensor; 2],
    _angles: &(Tensor, Tensor),
    _side_by_side: bool,
) -> Result<Option<[Tensor; 2]>> {
    Ok(None)
}

pub(crate) fn attend(
    _q: &Tensor,
    _k: &Tensor,
    _v: &Tensor,
    _how: Attended,
) -> Result<Option<Tensor>> {
    Ok(None)
}

#[cfg(feature = "kernels")]
pub(crate) fn products<const N: usize>(
    _x: &Tensor,
    _layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<Option<[Tensor; N]>> {
    Ok(None)
}

pub(crate) fn cross_entropy(
    _logits: &Tensor,
    _targets: &Tensor,
    _columns: &[Tensor; 3],
    _how: CrossEntropy,
) -> Result<bool> {
    Ok(false)
}
