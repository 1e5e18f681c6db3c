//! The first block types of GGUF: 32 weights each, with one scale and, in those that end with 1, a least value.

use tch::{Kind, Tensor};

use super::blocks::{float, product, sum, whole, Blocks};
use super::int8::check_finite;
use crate::device::trace::sent_numbers;
use crate::error::Result;
use crate::kernels::number::WithNumber;

/// `d * (q - 8)`
pub(super) fn q4_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let mut numbers = blocks.halves(2, [1, 16])?.f_view_dtype(Kind::Int8)?;
    scaled(out, &numbers.f_sub_scalar_(8)?, &blocks.half(0)?)
}

/// `d * q + m`
pub(super) fn q4_1(blocks: &Blocks, out: &Tensor) -> Result<()> {
    scaled(out, &blocks.halves(4, [1, 16])?, &blocks.half(0)?)?;
    sum(out, out, &blocks.half(2)?)
}

/// `d * (q - 16)`
pub(super) fn q5_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    scaled(out, &five_bits(blocks, 2, -16)?, &blocks.half(0)?)
}

/// `d * q + m`
pub(super) fn q5_1(blocks: &Blocks, out: &Tensor) -> Result<()> {
    scaled(out, &five_bits(blocks, 4, 0)?, &blocks.half(0)?)?;
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

/// The fifth bits of 32 weights from byte `start` on, and their four lower bits after them, together and with `more`:
/// i8.
fn five_bits(blocks: &Blocks, start: i64, more: i8) -> Result<Tensor> {
    // Bit i of byte j belongs to weight 8 j + i: one look-up finds all eight of a byte.
    let eight = |byte: i64| {
        i64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|bit| {
            let fifth = if byte >> bit & 1 == 1 { 16 } else { 0 };
            (fifth + more) as u8
        }))
    };
    let table: Vec<i64> = (0..256).map(eight).collect();
    let table = sent_numbers(&table, blocks.device())?;
    let bytes = blocks.field(start, &[4])?.f_to_kind(Kind::Int)?.f_view([-1])?;
    let fifth = table.f_index_select(0, &bytes)?.f_view_dtype(Kind::Int8)?;
    let mut numbers = blocks.halves(start + 4, [1, 16])?.f_view_dtype(Kind::Int8)?;
    Ok(numbers.f_add_(&fifth.f_view([blocks.count, 1, 2, 16])?)?)
}

/// Whole numbers, each block's times its scale.
fn scaled(out: &Tensor, numbers: &Tensor, scale: &Tensor) -> Result<()> {
    whole(out, numbers)?;
    product(out, out, scale)
}
