//! The first block types of GGUF: 32 weights each, with one scale and, in those that end with 1, a least value.

use tch::{Kind, Tensor};

use super::blocks::{float, masks, product, sum, units, Blocks};
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
