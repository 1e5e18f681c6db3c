//! Fused functions of our own on the CPU and on CUDA, in C++ (`csrc/fused`): several operations in one pass over memory,
//! with gradients of their own. Each gives `None` where libtorch's operators are to be used: on other devices, in other
//! kinds, for shapes that it does not know, while a trace is recorded, and where they are turned off.
#![allow(unsafe_code)]
// Models use most of them.
#![cfg_attr(not(feature = "models"), allow(dead_code))]

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::fused_forms::{Attended, CrossEntropy, Gate, NormForm};
use crate::device::fused_functions_are_on;
use crate::error::border::{checked, made};
use crate::error::{refuse, Result};

extern "C" {
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
    fn ln_tuning_gradients(
        results: *mut *mut C_tensor,
        outputs: *const *const C_tensor,
        gradients: *const *const C_tensor,
        outputs_count: i64,
        inputs: *const *const C_tensor,
        inputs_count: i64,
    ) -> *mut c_char;
}

/// The norm of `x` over its last dimension, with `weight` and `bias` of its kind: `[size]`, or of each part of `x`,
/// `[parts…, 1…, size]`. On the CPU, without a bias, `weight` may be of each head too, the last dimension but one of `x`:
/// `[heads, size]` or `[parts…, 1…, heads, size]`.
pub fn norm(
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
pub fn added_norm(
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
    // SAFETY: the function reads tensors that are alive.
    Ok(unsafe {
        made(|results| ln_tuning_norm(results, x.as_ptr(), added, weight, bias, form as i64, eps))
    }?)
}

/// The activation of `gate` times `up`.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Gate) -> Result<Option<Tensor>> {
    any_gated(gate, Some(up), activation)
}

/// The same of two halves, gate and up, of the last dimension.
pub fn gated_in_one(both: &Tensor, activation: Gate) -> Result<Option<Tensor>> {
    any_gated(both, None, activation)
}

fn any_gated(gate: &Tensor, up: Option<&Tensor>, activation: Gate) -> Result<Option<Tensor>> {
    if !is_for(gate)? {
        return Ok(None);
    }
    // SAFETY: the function reads tensors that are alive.
    let [result] = unsafe {
        made(|result| ln_tuning_gated(result, gate.as_ptr(), given(up), activation as i64))
    }?;
    Ok(result)
}

/// Queries and keys, `[batch, length, heads, head_dim]` each, turned by the tables of cosines and signed sines,
/// `[length, 1, dims]` or `[batch, length, 1, dims]`; dimensions that have no angle stay.
pub fn turned(
    [q, k]: [&Tensor; 2],
    (cos, sin): &(Tensor, Tensor),
    side_by_side: bool,
) -> Result<Option<[Tensor; 2]>> {
    if !is_for(q)? {
        return Ok(None);
    }
    let (q, k, cos, sin) = (q.as_ptr(), k.as_ptr(), cos.as_ptr(), sin.as_ptr());
    // SAFETY: the function reads tensors that are alive.
    let [q, k] =
        unsafe { made(|results| ln_tuning_turned(results, q, k, cos, sin, side_by_side.into())) }?;
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
    // SAFETY: tensors are alive, `N` of each; as many new ones are made.
    let all: [Option<Tensor>; N] = unsafe {
        made(|results| {
            ln_tuning_products(results, x.as_ptr(), weights.as_ptr(), biases.as_ptr(), N as i64)
        })
    }?;
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
    let (q, k, v, mask) = (q.as_ptr(), k.as_ptr(), v.as_ptr(), given(mask));
    let (causal, cap) = (causal.into(), cap.unwrap_or(0.));
    // SAFETY: the function reads tensors that are alive.
    let [result] =
        unsafe { made(|result| ln_tuning_attend(result, q, k, v, mask, causal, scale, cap)) }?;
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
    unsafe {
        checked(ln_tuning_cross_entropy(
            &mut done,
            logits.as_ptr(),
            given(into),
            given(bias),
            targets.as_ptr(),
            largest.as_ptr(),
            peak.as_ptr(),
            target.as_ptr(),
            scale,
            cap.unwrap_or(0.),
            smoothing,
            z_loss,
            wanted.into(),
        ))
    }?;
    Ok(done != 0)
}

/// The gradients of `inputs` from those of `outputs`.
pub fn gradients(
    outputs: &[Tensor],
    gradients: &[Tensor],
    inputs: &[&Tensor],
) -> Result<Vec<Tensor>> {
    if outputs.len() != gradients.len() {
        refuse!(ShapeMismatch, "{} gradients of {} outputs", gradients.len(), outputs.len());
    }
    let pointers = |tensors: &[Tensor]| tensors.iter().map(Tensor::as_ptr).collect::<Vec<_>>();
    let (outputs, given) = (pointers(outputs), pointers(gradients));
    let inputs: Vec<_> = inputs.iter().map(|tensor| tensor.as_ptr()).collect();
    let mut results = vec![null_mut(); inputs.len()];
    // SAFETY: the arrays have as many pointers as is said, to tensors that are alive.
    unsafe {
        checked(ln_tuning_gradients(
            results.as_mut_ptr(),
            outputs.as_ptr(),
            given.as_ptr(),
            outputs.len() as i64,
            inputs.as_ptr(),
            inputs.len() as i64,
        ))
    }?;
    // SAFETY: without a message, each is a new tensor of ours.
    Ok(results.into_iter().map(|result| unsafe { Tensor::from_ptr(result) }).collect())
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

#[cfg(test)]
#[path = "fused_tests/mod.rs"]
mod tests;
