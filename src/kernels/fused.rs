//! Fused functions of our own on the CPU and on CUDA, in C++ (`csrc/fused`): several operations in one pass over memory,
//! with gradients of their own. Each gives `None` where libtorch's operators are to be used: on other devices, in other
//! kinds, for shapes that it does not know, while a trace is recorded, and where they are turned off.
#![allow(unsafe_code)]
// Models use most of them.
#![cfg_attr(not(feature = "models"), allow(dead_code))]

use std::ffi::{c_char, c_void, CStr};
use std::ptr::{null, null_mut};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use super::fused_forms::{Attended, CrossEntropy, Gate, NormForm};
use crate::device::fused_functions_are_on;
use crate::error::Result;

extern "C" {
    fn free(memory: *mut c_void);
    fn ln_tuning_norm(
        results: *mut *mut C_tensor,
        x: *const C_tensor,
        added: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        form: i64,
        eps: f64,
    ) -> *mut c_char;
    fn ln_tuning_gated(
        result: *mut *mut C_tensor,
        gate: *const C_tensor,
        up: *const C_tensor,
        activation: i64,
    ) -> *mut c_char;
    fn ln_tuning_turned(
        results: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        side_by_side: i64,
    ) -> *mut c_char;
    fn ln_tuning_products(
        results: *mut *mut C_tensor,
        x: *const C_tensor,
        weights: *const *const C_tensor,
        biases: *const *const C_tensor,
        count: i64,
    ) -> *mut c_char;
    fn ln_tuning_attend(
        result: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        mask: *const C_tensor,
        causal: i64,
        scale: f64,
        cap: f64,
    ) -> *mut c_char;
    fn ln_tuning_cross_entropy(
        done: *mut i64,
        logits: *const C_tensor,
        gradient: *const C_tensor,
        bias: *const C_tensor,
        targets: *const C_tensor,
        largest: *const C_tensor,
        peak: *const C_tensor,
        target: *const C_tensor,
        scale: f64,
        cap: f64,
        smoothing: f64,
        z_loss: f64,
        wanted: i64,
    ) -> *mut c_char;
}

/// The norm of `x` over its last dimension, with `weight` and `bias` of its kind: `[size]`, or of each part of `x`,
/// `[parts…, 1…, size]`.
pub(crate) fn norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    form: NormForm,
    eps: f64,
) -> Result<Option<Tensor>> {
    let [norm, _] = norms(x, None, weight, bias, form, eps)?;
    Ok(norm)
}

/// The sum of `x` and `added`, and its norm.
pub(crate) fn added_norm(
    x: &Tensor,
    added: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    form: NormForm,
    eps: f64,
) -> Result<Option<(Tensor, Tensor)>> {
    let [sum, norm] = norms(x, Some(added), weight, bias, form, eps)?;
    Ok(sum.zip(norm))
}

fn norms(
    x: &Tensor,
    added: Option<&Tensor>,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    form: NormForm,
    eps: f64,
) -> Result<[Option<Tensor>; 2]> {
    if !is_for(x)? {
        return Ok([None, None]);
    }
    let (added, weight, bias) = (given(added), given(weight), given(bias));
    // SAFETY: see `made`.
    made(|results| unsafe {
        ln_tuning_norm(results, x.as_ptr(), added, weight, bias, form as i64, eps)
    })
}

/// The activation of `gate` times `up`.
pub(crate) fn gated(gate: &Tensor, up: &Tensor, activation: Gate) -> Result<Option<Tensor>> {
    any_gated(gate, Some(up), activation)
}

/// The same of two halves, gate and up, of the last dimension.
pub(crate) fn gated_in_one(both: &Tensor, activation: Gate) -> Result<Option<Tensor>> {
    any_gated(both, None, activation)
}

fn any_gated(gate: &Tensor, up: Option<&Tensor>, activation: Gate) -> Result<Option<Tensor>> {
    if !is_for(gate)? {
        return Ok(None);
    }
    // SAFETY: see `made`.
    let [result] = made(|result| unsafe {
        ln_tuning_gated(result, gate.as_ptr(), given(up), activation as i64)
    })?;
    Ok(result)
}

/// Queries and keys, `[batch, length, heads, head_dim]` each, turned by the tables of cosines and signed sines,
/// `[length, 1, dims]` or `[batch, length, 1, dims]`; dimensions that have no angle stay.
pub(crate) fn turned(
    [q, k]: [&Tensor; 2],
    (cos, sin): &(Tensor, Tensor),
    side_by_side: bool,
) -> Result<Option<[Tensor; 2]>> {
    if !is_for(q)? {
        return Ok(None);
    }
    // SAFETY: see `made`.
    let [q, k] = made(|results| unsafe {
        let (q, k, cos, sin) = (q.as_ptr(), k.as_ptr(), cos.as_ptr(), sin.as_ptr());
        ln_tuning_turned(results, q, k, cos, sin, side_by_side.into())
    })?;
    Ok(q.zip(k).map(<[Tensor; 2]>::from))
}

/// `x · weightᵀ + bias` of each of these layers, which are frozen, with one gradient for `x`, which the products add up.
pub(crate) fn products<const N: usize>(
    x: &Tensor,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<Option<[Tensor; N]>> {
    if !is_for(x)? {
        return Ok(None);
    }
    let weights = layers.map(|(weight, _)| weight.as_ptr());
    let biases = layers.map(|(_, bias)| given(bias));
    // SAFETY: see `made`; there are `N` of each.
    let all: [Option<Tensor>; N] = made(|results| unsafe {
        ln_tuning_products(results, x.as_ptr(), weights.as_ptr(), biases.as_ptr(), N as i64)
    })?;
    let all: Vec<Tensor> = all.into_iter().flatten().collect();
    Ok(all.try_into().ok())
}

/// Attention of queries `[batch, heads, length, dim]` to keys and values `[batch, heads, keys, dim]`, perhaps with fewer
/// heads. All scores stand in memory at once.
pub(crate) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    Attended { mask, causal, scale, cap }: Attended,
) -> Result<Option<Tensor>> {
    if !is_for(q)? {
        return Ok(None);
    }
    // SAFETY: see `made`.
    let [result] = made(|result| unsafe {
        let (q, k, v, mask) = (q.as_ptr(), k.as_ptr(), v.as_ptr(), given(mask));
        ln_tuning_attend(result, q, k, v, mask, causal.into(), scale, cap.unwrap_or(0.))
    })?;
    Ok(result)
}

/// Cross entropy of `logits` `[rows, classes]` against `targets` `[rows, 1]`, outside any graph. Writes the largest
/// logit, its share of the softmax and the target's logit of each row into the columns, `[rows, 1]` in f32. Their
/// gradient, if it is wanted, overwrites the logits; on CUDA, where they are f32, it may go to a tensor of another kind.
/// A target on CUDA that is no class makes the loss NaN. False if it was not computed.
pub(crate) fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    [largest, peak, target]: &[Tensor; 3],
    CrossEntropy { bias, scale, cap, smoothing, z_loss, wanted, into }: CrossEntropy,
) -> Result<bool> {
    if !is_for(logits)? || !into.map_or(Ok(true), is_for)? {
        return Ok(false);
    }
    let mut done = 0;
    // SAFETY: the tensors are alive; the logits and the columns are written, which tch allows to any handle.
    let [] = made(|_| unsafe {
        let [logits, targets] = [logits, targets].map(Tensor::as_ptr);
        let [largest, peak, target] = [largest, peak, target].map(Tensor::as_ptr);
        ln_tuning_cross_entropy(
            &mut done,
            logits,
            given(into),
            given(bias),
            targets,
            largest,
            peak,
            target,
            scale,
            cap.unwrap_or(0.),
            smoothing,
            z_loss,
            wanted.into(),
        )
    })?;
    Ok(done != 0)
}

/// The checks that need no call; the others are made in C++.
pub(crate) fn is_for(x: &Tensor) -> Result<bool> {
    let kind = x.f_kind()?;
    if !fused_functions_are_on() || !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half) {
        return Ok(false);
    }
    Ok(match x.device() {
        Device::Cpu => true,
        #[cfg(fused_cuda)]
        Device::Cuda(index) => super::gpu::is_ready(index, kind),
        _ => false,
    })
}

fn given(x: Option<&Tensor>) -> *const C_tensor {
    x.map_or(null(), Tensor::as_ptr)
}

/// The tensors that a function makes, or the error that it gives. Functions read the tensors that they are given, leave
/// up to `N` new ones, and give null or the message of an error.
fn made<const N: usize>(
    call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char,
) -> Result<[Option<Tensor>; N]> {
    let mut results = [null_mut(); N];
    let message = call(results.as_mut_ptr());
    if !message.is_null() {
        // SAFETY: the message ends with a zero, and is ours to free.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            free(message.cast());
            text
        };
        return Err(TchError::Torch(text).into());
    }
    // SAFETY: pointers that are not null are of new tensors, which are ours.
    Ok(results.map(|result| (!result.is_null()).then(|| unsafe { Tensor::from_ptr(result) })))
}

#[cfg(test)]
#[path = "fused_tests/mod.rs"]
mod tests;
