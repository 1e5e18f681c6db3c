//! The calls of `csrc/linear.cpp`.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::OnceLock;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::number::{made, read};
use crate::device::fused_functions_are_on;

extern "C" {
    fn ln_linear_graph(
        out: *mut *mut C_tensor,
        value: *mut C_tensor,
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        packed: *mut C_tensor,
        transposed: c_int,
        convolution: c_int,
    );
    fn ln_linear_is_traced() -> c_int;
    fn ln_linear_most_rows() -> i64;
    fn ln_linear_few_rows(
        out: *mut *mut C_tensor,
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
    );
}

#[cfg(feature = "models")]
extern "C" {
    fn ln_linear_pack(out: *mut *mut C_tensor, weight: *mut C_tensor);
    fn ln_linear_packed(
        out: *mut *mut C_tensor,
        x: *mut C_tensor,
        packed: *mut C_tensor,
        bias: *mut C_tensor,
    );
}

/// Null for none.
fn perhaps(tensor: Option<&Tensor>) -> *mut C_tensor {
    tensor.map_or(null_mut(), read)
}

/// True if these calls may be used: not while a trace is recorded, which would not see what they compute, and not where
/// `LN_TUNING_FUSED=0` asks for libtorch's own operators.
pub(super) fn are_on() -> bool {
    // SAFETY: reads a state of this thread.
    fused_functions_are_on() && unsafe { ln_linear_is_traced() == 0 }
}

/// The backward pass of a product.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Back<'a> {
    /// The weight is `[in, out]`.
    pub(super) transposed: bool,
    /// As a convolution.
    pub(super) convolution: bool,
    /// With the weight as [`packed`] makes it of `[in, out]`.
    pub(super) packed: Option<&'a Tensor>,
}

/// `value`, which is x · weightᵀ + bias without a graph, with one if any of these wants a gradient. It keeps `x` for the
/// gradient of the weight only.
pub(super) fn with_graph(
    value: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    back: Back,
) -> Result<Tensor, TchError> {
    let (value, x, weight, bias) = (read(value), read(x), read(weight), perhaps(bias));
    let (transposed, convolution) = (c_int::from(back.transposed), c_int::from(back.convolution));
    let packed = perhaps(back.packed);
    // SAFETY: the tensors are read, and live longer than the call, which makes one or leaves an error.
    made(|out| unsafe {
        ln_linear_graph(out, value, x, weight, bias, packed, transposed, convolution)
    })
}

/// The largest number of rows that [`few_rows`] takes; 0 on processors that it is not written for.
pub(super) fn most_rows() -> i64 {
    static MOST: OnceLock<i64> = OnceLock::new();
    // SAFETY: reads a constant.
    *MOST.get_or_init(|| unsafe { ln_linear_most_rows() })
}

/// x · weightᵀ + bias without a graph, for contiguous weights `[out, in]` in f32 or bf16.
pub(super) fn few_rows(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let (x, weight, bias) = (read(x), read(weight), perhaps(bias));
    // SAFETY: as above.
    made(|out| unsafe { ln_linear_few_rows(out, x, weight, bias) })
}

/// A matrix `[out, in]` in f32 or bf16, in the order that oneDNN multiplies fastest with. It can only be multiplied with.
#[cfg(feature = "models")]
pub(super) fn packed(weight: &Tensor) -> Result<Tensor, TchError> {
    let weight = read(weight);
    // SAFETY: as above.
    made(|out| unsafe { ln_linear_pack(out, weight) })
}

/// x · weightᵀ + bias without a graph, for a weight that is [`packed`].
#[cfg(feature = "models")]
pub(super) fn packed_product(
    x: &Tensor,
    packed: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let (x, packed, bias) = (read(x), read(packed), perhaps(bias));
    // SAFETY: as above.
    made(|out| unsafe { ln_linear_packed(out, x, packed, bias) })
}
