//! The calls of `csrc/linear.cpp`.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;
use std::sync::OnceLock;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::number::read;
use super::way::Way;
use crate::device::fused_functions_are_on;
use crate::error::border::{checked, made};

extern "C" {
    fn ln_linear_graph(
        out: *mut *mut C_tensor,
        value: *mut C_tensor,
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        packed: *mut C_tensor,
        transposed: c_int,
        way: i64,
    ) -> *mut c_char;
    fn ln_linear_is_traced() -> c_int;
    fn ln_linear_most_rows() -> i64;
    fn ln_linear_has_blocks() -> c_int;
    fn ln_linear_blocks(
        out: *mut *mut C_tensor,
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        transposed: c_int,
    ) -> *mut c_char;
    fn ln_linear_blocks_into(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        transposed: c_int,
        out: *mut C_tensor,
    ) -> *mut c_char;
    fn ln_linear_few_rows(
        outs: *mut *mut C_tensor,
        x: *mut C_tensor,
        weights: *const *mut C_tensor,
        biases: *const *mut C_tensor,
        count: i64,
    ) -> *mut c_char;
}

#[cfg(feature = "models")]
extern "C" {
    fn ln_linear_pack(out: *mut *mut C_tensor, weight: *mut C_tensor) -> *mut c_char;
    fn ln_linear_packed(
        out: *mut *mut C_tensor,
        x: *mut C_tensor,
        packed: *mut C_tensor,
        bias: *mut C_tensor,
    ) -> *mut c_char;
}

/// The tensor that a call makes.
///
/// # Safety
/// As [`made`].
unsafe fn one(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, TchError> {
    // SAFETY: as the caller promises.
    let [made] = unsafe { made(call) }?;
    Ok(made.unwrap_or_default())
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
    pub(super) way: Way,
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
    let (transposed, way) = (c_int::from(back.transposed), back.way as i64);
    let packed = perhaps(back.packed);
    // SAFETY: the tensors are read, and live longer than the call, which makes one or gives an error.
    unsafe { one(|out| ln_linear_graph(out, value, x, weight, bias, packed, transposed, way)) }
}

/// The largest number of rows that [`few_rows`] takes; 0 on processors that it is not written for.
pub(super) fn most_rows() -> i64 {
    static MOST: OnceLock<i64> = OnceLock::new();
    // SAFETY: reads a constant.
    *MOST.get_or_init(|| unsafe { ln_linear_most_rows() })
}

/// True if this processor has the loops of [`blocks`].
pub(super) fn has_blocks() -> bool {
    // SAFETY: reads a constant.
    unsafe { ln_linear_has_blocks() != 0 }
}

/// x · weightᵀ + bias without a graph, or x · weight + bias if it is transposed, in f32, by loops of this crate. Each
/// row is the same whatever the rows beside it and the number of threads.
pub(super) fn blocks(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    transposed: bool,
) -> Result<Tensor, TchError> {
    let (x, weight, bias) = (read(x), read(weight), perhaps(bias));
    // SAFETY: as above.
    unsafe { one(|out| ln_linear_blocks(out, x, weight, bias, transposed.into())) }
}

/// The same of a matrix `[rows, in]`, into `out`.
pub(super) fn blocks_into(
    x: &Tensor,
    weight: &Tensor,
    transposed: bool,
    out: &mut Tensor,
) -> Result<(), TchError> {
    // SAFETY: as above; `out` is written, and no new tensor is made.
    unsafe {
        checked(ln_linear_blocks_into(read(x), read(weight), transposed.into(), out.as_mut_ptr()))
    }
}

/// x · weightᵀ + bias without a graph of each of these, for contiguous weights `[out, in]` in f32 or bf16.
pub(super) fn few_rows<const N: usize>(
    x: &Tensor,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<[Tensor; N], TchError> {
    let weights = layers.map(|(weight, _)| read(weight));
    let biases = layers.map(|(_, bias)| perhaps(bias));
    // SAFETY: as above; there are `N` of each.
    let all = unsafe {
        made(|outs| ln_linear_few_rows(outs, read(x), weights.as_ptr(), biases.as_ptr(), N as i64))
    }?;
    Ok(all.map(Option::unwrap_or_default))
}

/// A matrix `[out, in]` in f32 or bf16, in the order that oneDNN multiplies fastest with. It can only be multiplied with.
#[cfg(feature = "models")]
pub(super) fn packed(weight: &Tensor) -> Result<Tensor, TchError> {
    let weight = read(weight);
    // SAFETY: as above.
    unsafe { one(|out| ln_linear_pack(out, weight)) }
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
    unsafe { one(|out| ln_linear_packed(out, x, packed, bias)) }
}
