//! The IQ4 types of GGUF: four bits that stand for one of 16 whole numbers, close together around zero.

use tch::{Device, Kind, Tensor};

use super::blocks::{masked, parts, product, Blocks};
use crate::error::Result;
use crate::kernels::number::full;

/// The 16 numbers, in f32. They are made on the device: a copy from the host would wait for it.
fn numbers(device: Device) -> Result<Tensor> {
    let eight = |numbers: [i8; 8]| {
        let word = i64::from_le_bytes(numbers.map(|number| number as u8));
        full([1], word, (Kind::Int64, device))?.f_view_dtype(Kind::Int8)
    };
    let lower = eight([-127, -104, -83, -65, -49, -35, -22, -10])?;
    let upper = eight([1, 13, 25, 38, 53, 69, 89, 113])?;
    Ok(Tensor::f_cat(&[lower, upper], 0)?.f_to_kind(Kind::Float)?)
}

/// `d * number`
pub(super) fn iq4_nl(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let out = out.f_view([blocks.count, 1, 2, 16])?;
    numbered(blocks, 2, &blocks.half(0)?.f_unsqueeze(-1)?, &out)
}

/// `d * (s - 32) * number`, in 8 groups
pub(super) fn iq4_xs(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let count = blocks.count;
    let lower = blocks.field(4, &[4, 1])?;
    let lower = Tensor::f_cat(&[masked(&lower, 0x0f, 1.)?, masked(&lower, 0xf0, 1. / 16.)?], 2)?;
    let upper = parts(&blocks.field(2, &[2, 1])?, 2, 16.)?.f_view([count, 8])?;
    let mut scales = lower.f_view([count, 8])?.f_add(&upper)?.f_sub_scalar_(32)?;
    let scales = scales.f_mul_(&blocks.half(0)?)?.f_unsqueeze(-1)?;
    numbered(blocks, 8, &scales, &out.f_view([count, 8, 2, 16])?)
}

/// The numbers of the lower and upper halves of bytes from `start` on, by scales `[count, groups, 1]`.
fn numbered(blocks: &Blocks, start: i64, scales: &Tensor, out: &Tensor) -> Result<()> {
    let shape = [blocks.count, out.size()[1], 16];
    let bytes = blocks.field(start, &shape[1..])?.f_to_kind(Kind::Int)?.f_view(-1)?;
    // By whole bytes, so that no half has to be taken out of them.
    let numbers = numbers(blocks.device())?;
    let by_lower = numbers.f_repeat([16])?;
    let by_upper = numbers.f_unsqueeze(1)?.f_repeat([1, 16])?.f_view(-1)?;
    for (half, table) in [by_lower, by_upper].iter().enumerate() {
        let found = table.f_index_select(0, &bytes)?.f_view(shape)?;
        product(&out.f_select(2, half as i64)?, &found, scales)?;
    }
    Ok(())
}
