//! Autograd's mode on this thread: whether it records a graph. tch has no query for it.
// Models ask most.
#![cfg_attr(not(feature = "models"), allow(dead_code))]

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// True if autograd records operations.
pub(crate) fn grad_is_enabled() -> Result<bool> {
    let leaf = Tensor::f_empty([0], (Kind::Float, Device::Cpu))?.f_set_requires_grad(true)?;
    is_recorded(&leaf)
}

/// True if a result computed from `tensor` now has a graph.
pub(crate) fn is_recorded(tensor: &Tensor) -> Result<bool> {
    // A view made under `no_grad` requires no gradient.
    Ok(tensor.requires_grad() && tensor.f_alias()?.requires_grad())
}
