//! The K types of GGUF: 256 weights in 8 or 16 groups, whose scales are whole numbers under a common scale.

use tch::{Kind, Tensor};

use super::blocks::{float, masked, masks, parts, product, sum, units, Blocks};
use crate::error::Result;
use crate::kernels::number::WithNumber;

/// `d * s * q - dmin * m`, in 16 groups
pub(super) fn q2_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let count = blocks.count;
    let scales = blocks.field(0, &[16])?;
    let least = masked(&scales, 0xf0, 1. / 16.)?.f_mul_(&blocks.half(82)?)?;
    let masks = masks(2, blocks.device())?.f_unsqueeze(-1)?;
    // Two groups lie in each of the four parts of 32 bytes. The scales take up where in a byte the parts are.
    let scales = masked(&scales, 0x0f, 1.)?.f_mul_(&blocks.half(80)?)?;
    let scales = scales.f_view([count, 2, 4, 2])?.f_mul_(&units(&masks, 2, 1.)?)?;
    let whole = float(&blocks.field(16, &[2, 1, 32])?.f_bitwise_and_tensor(&masks)?)?;
    let out = out.f_view([count, 16, 16])?;
    product(&out, &whole.f_view([count, 16, 16])?, &scales.f_view([count, 16, 1])?)?;
    let _ = out.shallow_clone().f_sub_(&least.f_unsqueeze(-1)?)?;
    Ok(())
}

/// `d * (s - 32) * (q - 4)`, in 16 groups
pub(super) fn q3_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let count = blocks.count;
    let scales = blocks.field(96, &[8])?;
    let low = Tensor::f_cat(&[masked(&scales, 0x0f, 1.)?, masked(&scales, 0xf0, 1. / 16.)?], 1)?;
    let high = parts(&blocks.field(104, &[4])?, 2, 16.)?.f_view([count, 16])?;
    let scales = (low.f_add(&high)?.f_sub_scalar_(32)?).f_mul_(&blocks.half(108)?)?;
    let low = parts(&blocks.field(32, &[2, 32])?, 2, 1.)?.f_view([count, 16, 16])?;
    let high = parts(&blocks.field(0, &[32])?, 1, 4.)?.f_view([count, 16, 16])?;
    let whole = high.shallow_clone().f_add_(&low)?.f_sub_scalar_(4)?;
    product(&out.f_view([count, 16, 16])?, &whole, &scales.f_unsqueeze(-1)?)
}

/// `d * s * q - dmin * m`, in 8 groups
pub(super) fn q4_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let (scales, least) = scales(blocks)?;
    let pairs = out.f_view([blocks.count, 4, 2, 32])?;
    let (even, odd) = (scales.f_select(2, 0)?, scales.f_select(2, 1)?);
    product(&pairs.f_select(2, 0)?, &blocks.low(16, &[4, 32])?, &even)?;
    let odd = odd.f_mul_number(1. / 16.)?;
    product(&pairs.f_select(2, 1)?, &blocks.high(16, &[4, 32])?, &odd)?;
    let _ = pairs.shallow_clone().f_sub_(&least)?;
    Ok(())
}

/// `d * s * q - dmin * m`, in 8 groups
pub(super) fn q5_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let (scales, least) = scales(blocks)?;
    let shape = [blocks.count, 4, 2, 32];
    let fifth = parts(&blocks.field(16, &[32])?, 1, 16.)?.f_view(shape)?;
    let mut pairs = out.f_view(shape)?;
    sum(&pairs.f_select(2, 0)?, &blocks.low(48, &[4, 32])?, &fifth.f_select(2, 0)?)?;
    let high = blocks.high(48, &[4, 32])?.f_mul_scalar_(1. / 16.)?;
    sum(&pairs.f_select(2, 1)?, &high, &fifth.f_select(2, 1)?)?;
    let _ = pairs.f_mul_(&scales)?.f_sub_(&least)?;
    Ok(())
}

/// `d * s * (q - 32)`, in 16 groups
pub(super) fn q6_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let shape = [blocks.count, 2, 2, 64];
    let upper = parts(&blocks.field(128, &[2, 32])?, 2, 16.)?.f_sub_scalar_(32)?.f_view(shape)?;
    let halves = out.f_view(shape)?;
    sum(&halves.f_select(2, 0)?, &blocks.low(0, &[2, 64])?, &upper.f_select(2, 0)?)?;
    let high = blocks.high(0, &[2, 64])?.f_mul_scalar_(1. / 16.)?;
    sum(&halves.f_select(2, 1)?, &high, &upper.f_select(2, 1)?)?;
    let scales = float(&blocks.field(192, &[16])?.f_view_dtype(Kind::Int8)?)?;
    let scales = scales.shallow_clone().f_mul_(&blocks.half(208)?)?;
    let groups = out.f_view([blocks.count, 16, 16])?;
    product(&groups, &groups, &scales.f_unsqueeze(-1)?)
}

/// The scales of Q4_K and Q5_K and what they take away: `[count, 4, 2, 1]` each.
fn scales(blocks: &Blocks) -> Result<(Tensor, Tensor)> {
    // Groups 0 to 3 have six bits in one byte; the others have four in one of the last bytes, and two on top of those.
    let first = blocks.field(4, &[2, 4])?;
    let (lower, upper) = (masked(&first, 0x3f, 1.)?, masked(&first, 0xc0, 1. / 4.)?);
    let last = blocks.field(12, &[4])?;
    let last = [masked(&last, 0x0f, 1.)?, masked(&last, 0xf0, 1. / 16.)?];
    let of = |which: i64, start: i64| -> Result<Tensor> {
        let later = upper.f_select(1, which)?.f_add(&last[which as usize])?;
        let all = Tensor::f_cat(&[lower.f_select(1, which)?, later], 1)?;
        let all = all.shallow_clone().f_mul_(&blocks.half(start)?)?;
        Ok(all.f_view([blocks.count, 4, 2, 1])?)
    };
    Ok((of(0, 0)?, of(1, 2)?))
}
