//! The first block types of GGUF: 32 weights each, with one scale and, in those that end with 1, a least value.

use tch::{Kind, Tensor};

use super::blocks::{float, masks, product, sum, units, Blocks};
use super::int8::check_finite;
use crate::error::Result;
use crate::kernels::number::WithNumber;

/// `d * (q - 8)`
pub(super) fn q4_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let scale = blocks.half(0)?;
    let low = blocks.low(2, &[16])?.f_sub_scalar_(8)?;
    product(&out.f_narrow(1, 0, 16)?, &low, &scale)?;
    let high = blocks.high(2, &[16])?.f_sub_scalar_(8 * 16)?;
    product(&out.f_narrow(1, 16, 16)?, &high, &scale.f_mul_number(1. / 16.)?)
}

/// `d * q + m`
pub(super) fn q4_1(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let scale = blocks.half(0)?;
    product(&out.f_narrow(1, 0, 16)?, &blocks.low(4, &[16])?, &scale)?;
    let sixteenth = scale.f_mul_number(1. / 16.)?;
    product(&out.f_narrow(1, 16, 16)?, &blocks.high(4, &[16])?, &sixteenth)?;
    sum(out, out, &blocks.half(2)?)
}

/// `d * (q - 16)`
pub(super) fn q5_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let whole = five_bits(blocks, 2, out)?.f_sub_scalar_(16)?;
    product(out, &whole, &blocks.half(0)?)
}

/// `d * q + m`
pub(super) fn q5_1(blocks: &Blocks, out: &Tensor) -> Result<()> {
    product(out, &five_bits(blocks, 4, out)?, &blocks.half(0)?)?;
    sum(out, out, &blocks.half(2)?)
}

/// `d * q`, with q of eight bits and a sign
pub(super) fn q8_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let whole = float(&blocks.bytes.f_view_dtype(Kind::Int8)?)?;
    product(out, &whole.f_narrow(1, 2, 32)?, &blocks.half(0)?)
}

/// The bytes of rows of whole blocks in Q8_0, as llama.cpp makes them: rounded half away from zero.
pub(super) fn to_q8_0(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.size2()?;
    let blocks = float(matrix)?.f_contiguous()?.f_view([-1, 32])?;
    let scale = blocks.f_abs()?.f_amax([1_i64], true)?.f_div_number(127)?;
    check_finite(&scale)?;
    // All weights are 0 if the scale is.
    let inverse = scale.f_reciprocal()?.f_nan_to_num(0., 0., 0.)?;
    let whole = blocks.f_mul(&inverse)?;
    let least = whole.f_abs()?.f_floor()?;
    let rest = whole.f_abs()?.f_sub(&least)?.f_mul_scalar_(2)?.f_floor()?;
    let whole = whole.f_sign()?.f_mul_(&least.f_add(&rest)?)?.f_to_kind(Kind::Int8)?;
    let scale = scale.f_to_kind(Kind::Half)?.f_view_dtype(Kind::Uint8)?;
    let bytes = Tensor::f_cat(&[scale, whole.f_view_dtype(Kind::Uint8)?], 1)?;
    Ok(bytes.f_view([rows, columns / 32 * 34])?)
}

/// The fifth bits of 32 weights from byte `start` on, and their four lower bits after them, together.
fn five_bits(blocks: &Blocks, start: i64, out: &Tensor) -> Result<Tensor> {
    // Bit i of byte j belongs to weight 8 j + i.
    let masks = masks(1, blocks.device())?;
    let fifth = float(&blocks.field(start, &[4, 1])?.f_bitwise_and_tensor(&masks)?)?
        .f_mul_(&units(&masks, 1, 16.)?)?
        .f_view([blocks.count, 32])?;
    sum(&out.f_narrow(1, 0, 16)?, &blocks.low(start + 4, &[16])?, &fifth.f_narrow(1, 0, 16)?)?;
    let high = blocks.high(start + 4, &[16])?.f_mul_scalar_(1. / 16.)?;
    sum(&out.f_narrow(1, 16, 16)?, &high, &fifth.f_narrow(1, 16, 16)?)?;
    Ok(out.shallow_clone())
}
