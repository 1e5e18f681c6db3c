//! The fused functions one by one, for the checks on a GPU and under the counting runtime.
#![allow(unsafe_code)]

use std::ffi::{c_char, CStr};
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::fused;
use super::fused_forms::CrossEntropy;
pub use super::fused_forms::{Gate, NormForm};
use crate::error::Result;

extern "C" {
    fn ln_tuning_gradients(
        results: *mut *mut C_tensor,
        outputs: *const *const C_tensor,
        gradients: *const *const C_tensor,
        outputs_count: i64,
        inputs: *const *const C_tensor,
        inputs_count: i64,
    ) -> *mut c_char;
    #[cfg(fused_cuda)]
    fn ln_tuning_gpu_compile(capability: i64, kind: i64, log: *mut *mut c_char) -> *mut c_char;
    #[cfg(fused_cuda)]
    fn free(memory: *mut std::ffi::c_void);
}

/// The norm of `x` over its last dimension.
pub fn norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    form: NormForm,
    eps: f64,
) -> Result<Option<Tensor>> {
    fused::norm(x, weight, bias, form, eps)
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
    fused::added_norm(x, added, weight, bias, form, eps)
}

/// The activation of `gate` times `up`; without `up`, `gate` holds both.
pub fn gated(gate: &Tensor, up: Option<&Tensor>, activation: Gate) -> Result<Option<Tensor>> {
    match up {
        Some(up) => fused::gated(gate, up, activation),
        None => fused::gated_in_one(gate, activation),
    }
}

/// Queries and keys turned by the tables of cosines and signed sines.
pub fn turned(
    both: [&Tensor; 2],
    angles: &(Tensor, Tensor),
    side_by_side: bool,
) -> Result<Option<[Tensor; 2]>> {
    fused::turned(both, angles, side_by_side)
}

/// The cross entropy of `logits` `[rows, classes]` in f32 against `targets` `[rows, 1]`: the largest logit of each row, its
/// share of the softmax and the target's logit, `[rows, 1]`, and the gradient of the logits in `kind`.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    (cap, smoothing, z_loss): (Option<f64>, f64, f64),
    kind: tch::Kind,
) -> Result<Option<[Tensor; 4]>> {
    let column = || Tensor::f_empty(targets.size(), (tch::Kind::Float, logits.device()));
    let columns = [column()?, column()?, column()?];
    let gradient = Tensor::f_empty(logits.size(), (kind, logits.device()))?;
    let into = Some(&gradient);
    let how = CrossEntropy { bias: None, scale: 1., cap, smoothing, z_loss, wanted: true, into };
    let done = fused::cross_entropy(logits, targets, &columns, how)?;
    let [largest, peak, target] = columns;
    Ok(done.then_some([largest, peak, target, gradient]))
}

/// The gradients of `inputs` from those of `outputs`.
pub fn gradients(
    outputs: &[Tensor],
    gradients: &[Tensor],
    inputs: &[&Tensor],
) -> Result<Vec<Tensor>> {
    let pointers = |tensors: &[Tensor]| -> Vec<*const C_tensor> {
        tensors.iter().map(|tensor| tensor.as_ptr()).collect()
    };
    let (outputs, given) = (pointers(outputs), pointers(gradients));
    let inputs: Vec<_> = inputs.iter().map(|tensor| tensor.as_ptr()).collect();
    let mut results = vec![null_mut(); inputs.len()];
    // SAFETY: the arrays have as many pointers as is said, to tensors that are alive; there is a gradient for each
    // output.
    let message = unsafe {
        assert_eq!(outputs.len(), given.len());
        let (outputs_count, inputs_count) = (outputs.len() as i64, inputs.len() as i64);
        ln_tuning_gradients(
            results.as_mut_ptr(),
            outputs.as_ptr(),
            given.as_ptr(),
            outputs_count,
            inputs.as_ptr(),
            inputs_count,
        )
    };
    if !message.is_null() {
        // SAFETY: the message ends with a zero. It is left, as the check ends with it.
        let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
        return Err(TchError::Torch(text).into());
    }
    // SAFETY: without a message, each is a new tensor of ours.
    Ok(results.into_iter().map(|result| unsafe { Tensor::from_ptr(result) }).collect())
}

/// The words of NVRTC about the kernels of a kind for a compute capability, times ten; with the registers and the local
/// memory of each.
///
/// # Errors
/// `Torch`, with the reason, if they cannot be compiled.
#[cfg(fused_cuda)]
pub fn compiled(capability: i64, kind: tch::Kind) -> Result<String> {
    let kinds = [tch::Kind::Float, tch::Kind::BFloat16, tch::Kind::Half];
    let at = kinds.iter().position(|known| *known == kind).unwrap_or_default();
    let mut log = null_mut();
    // SAFETY: `log` is written if there is no message; both end with a zero and are ours to free.
    unsafe {
        let message = ln_tuning_gpu_compile(capability, at as i64, &mut log);
        let text = if message.is_null() { log } else { message };
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text.cast());
        if message.is_null() {
            Ok(owned)
        } else {
            Err(TchError::Torch(owned).into())
        }
    }
}
