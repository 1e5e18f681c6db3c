//! The K types of GGUF: 256 weights in 8 or 16 groups, whose scales are whole numbers under a common scale.

use tch::{Kind, Tensor};

use super::blocks::{bits, float, masked, masks, parts, product, units, whole, Blocks};
use crate::error::Result;

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
    let mut low = bits(&blocks.field(32, &[2, 32])?, 2, 1)?.f_view([count, 8, 32])?;
    let numbers = low.f_add_(&bits(&blocks.field(0, &[32])?, 1, 4)?)?;
    whole(out, &numbers.f_view_dtype(Kind::Int8)?.f_sub_scalar_(4)?)?;
    let groups = out.f_view([count, 16, 16])?;
    product(&groups, &groups, &scales.f_unsqueeze(-1)?)
}

/// `d * s * q - dmin * m`, in 8 groups
pub(super) fn q4_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    less(out, &blocks.halves(16, [4, 32])?, &scales(blocks)?)
}

/// `d * s * q - dmin * m`, in 8 groups
pub(super) fn q5_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let fifth = bits(&blocks.field(16, &[32])?, 1, 16)?.f_view([blocks.count, 4, 2, 32])?;
    less(out, &blocks.halves(48, [4, 32])?.f_add_(&fifth)?, &scales(blocks)?)
}

/// Whole numbers times their scales, less what those take away.
fn less(out: &Tensor, numbers: &Tensor, (scales, least): &(Tensor, Tensor)) -> Result<()> {
    whole(out, numbers)?;
    let mut pairs = out.f_view(&numbers.size()[..])?;
    let _ = pairs.f_mul_(scales)?.f_sub_(least)?;
    Ok(())
}

/// `d * s * (q - 32)`, in 16 groups
pub(super) fn q6_k(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let upper = bits(&blocks.field(128, &[2, 32])?, 2, 16)?.f_view([blocks.count, 2, 2, 64])?;
    let numbers = blocks.halves(0, [2, 64])?.f_add_(&upper)?.f_view_dtype(Kind::Int8)?;
    whole(out, &numbers.shallow_clone().f_sub_scalar_(32)?)?;
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
