//! Blocks of quantised weights as a matrix of bytes: the fields of every block at once.
//!
//! Products of the small whole numbers and f16 scales that blocks are made of are exact in f32, in any order, and so
//! are powers of two taken out of them. Only a difference or a sum of two products rounds.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::kernels::number::{full, WithNumber};

/// Blocks of one type, a row each: u8, contiguous.
pub(super) struct Blocks<'t> {
    pub(super) bytes: &'t Tensor,
    pub(super) count: i64,
}

impl<'t> Blocks<'t> {
    pub(super) fn new(bytes: &'t Tensor) -> Result<Self> {
        Ok(Blocks { bytes, count: bytes.size2()?.0 })
    }

    pub(super) fn device(&self) -> Device {
        self.bytes.device()
    }

    /// Bytes of each block, in the shape that they have there.
    pub(super) fn field(&self, start: i64, shape: &[i64]) -> Result<Tensor> {
        let field = self.bytes.f_narrow(1, start, shape.iter().product())?;
        Ok(field.f_view(&[&[self.count], shape].concat()[..])?)
    }

    /// The f16 at a place of each block, in f32: `[count, 1]`.
    pub(super) fn half(&self, start: i64) -> Result<Tensor> {
        float(&self.field(start, &[2])?.f_view_dtype(Kind::Half)?)
    }

    /// Both halves of each byte of a field `[groups, n]`, the lower first: u8, `[count, groups, 2, n]`.
    ///
    /// Whole blocks are computed, and the field taken from them: one long row is faster than many short ones.
    pub(super) fn halves(&self, start: i64, [groups, len]: [i64; 2]) -> Result<Tensor> {
        let upper = shifts(4, self.device())?.f_narrow(0, 1, 1)?;
        let halves = [self.bytes.f_and_number(0x0f)?, self.bytes.f_bitwise_right_shift(&upper)?];
        let fields = halves
            .iter()
            .map(|bytes| Blocks { bytes, count: self.count }.field(start, &[groups, 1, len]));
        Ok(Tensor::f_cat(&fields.collect::<Result<Vec<_>>>()?, 2)?)
    }
}

pub(super) fn float(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_to_kind(Kind::Float)?)
}

/// The bytes under a mask, in f32, counted in units of `scale`.
pub(super) fn masked(bytes: &Tensor, mask: i64, scale: f64) -> Result<Tensor> {
    Ok(float(&bytes.f_and_number(mask)?)?.f_mul_scalar_(scale)?)
}

/// Writes `x * y` to `out`, which may be a part of another tensor.
pub(super) fn product(out: &Tensor, x: &Tensor, y: &Tensor) -> Result<()> {
    let _ = x.f_mul_out(out, y)?;
    Ok(())
}

/// Writes `x + y` to `out`.
pub(super) fn sum(out: &Tensor, x: &Tensor, y: &Tensor) -> Result<()> {
    let _ = x.f_add_out(out, y)?;
    Ok(())
}

/// Writes whole numbers to `out`, in f32.
pub(super) fn whole(out: &Tensor, numbers: &Tensor) -> Result<()> {
    Ok(out.shallow_clone().f_copy_(&numbers.f_view(&out.size()[..])?)?)
}

/// The parts of bytes, the lowest bits first, times `unit`: u8, `[…, n]` gives `[…, 8 / bits, n]`.
///
/// In bytes, an operation reads a quarter of what it would in f32.
pub(super) fn bits(bytes: &Tensor, bits: i64, unit: i64) -> Result<Tensor> {
    let shifts = shifts(bits, bytes.device())?.f_unsqueeze(-1)?;
    let mut parts = bytes.f_unsqueeze(-2)?.f_bitwise_right_shift(&shifts)?;
    let _ = parts.f_bitwise_and_((1 << bits) - 1_i64)?;
    if unit != 1 {
        let _ = parts.f_mul_scalar_(unit)?;
    }
    Ok(parts)
}

/// The shifts to the parts of a byte, the lowest bits first. They are made on the device, as [`masks`].
fn shifts(bits: i64, device: Device) -> Result<Tensor> {
    let all: i64 = match bits {
        1 => 0x0706_0504_0302_0100,
        2 => 0x0604_0200,
        _ => 0x0400,
    };
    let bytes = full([1], all, (Kind::Int64, device))?.f_view_dtype(Kind::Uint8)?;
    Ok(bytes.f_narrow(0, 0, 8 / bits)?)
}

/// Masks for the bits of a byte, the lowest first: eight of one bit, or four of two.
///
/// They are made on the device: a copy from the host would wait for it.
pub(super) fn masks(bits: i64, device: Device) -> Result<Tensor> {
    let all: u64 = if bits == 1 { 0x8040_2010_0804_0201 } else { 0xc030_0c03_c030_0c03 };
    let bytes = full([1], all as i64, (Kind::Int64, device))?.f_view_dtype(Kind::Uint8)?;
    Ok(bytes.f_narrow(0, 0, 8 / bits)?)
}

/// The parts of bytes, the lowest bits first: `[…, n]` gives `[…, 8 / bits, n]`, in f32, counted in units of `scale`.
pub(super) fn parts(bytes: &Tensor, bits: i64, scale: f64) -> Result<Tensor> {
    let masks = masks(bits, bytes.device())?.f_unsqueeze(-1)?;
    let mut parts = float(&bytes.f_unsqueeze(-2)?.f_bitwise_and_tensor(&masks)?)?;
    Ok(parts.f_mul_(&units(&masks, bits, scale)?)?)
}

/// The factors that make what masks leave count `scale`.
pub(super) fn units(masks: &Tensor, bits: i64, scale: f64) -> Result<Tensor> {
    let most = if bits == 1 { 1. } else { 3. };
    Ok(float(masks)?.f_reciprocal()?.f_mul_number(most * scale)?)
}
