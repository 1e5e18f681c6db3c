//! The learned shift, made smaller or larger: base + factor · (tuned − base) (arXiv 2508.07577).

use tch::{Kind, Tensor};

use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::storage::info::is_float;

/// Computed in f64, for the caller to round once. For 0 it is `base` and for 1 `tuned`, bit for bit and in its kind.
/// Anything but floating-point numbers, such as a counter, is not scaled otherwise.
pub(crate) fn scaled(base: &Tensor, tuned: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 0. {
        return Ok(base.shallow_clone());
    }
    if factor == 1. || !is_float(tuned.f_kind()?) {
        return Ok(tuned.shallow_clone());
    }
    let (base, tuned) = (base.f_to_kind(Kind::Double)?, tuned.f_to_kind(Kind::Double)?);
    Ok(base.f_add(&tuned.f_sub(&base)?.f_mul_number(factor)?)?)
}

pub(crate) fn check_scale(factor: f64) -> Result<()> {
    if !factor.is_finite() {
        refuse!(
            InvalidArgument,
            "the scale of the learned shift is {factor}, expected a finite number: 0 is the base, 1 the adapter"
        );
    }
    Ok(())
}
