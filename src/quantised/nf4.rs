//! Four bits per weight, for one of 16 values, with a factor per 64 weights of the flattened matrix.
//!
//! The 16 values are quantiles of a normal distribution (QLoRA, arXiv 2305.14314). Codes and factors are those of
//! bitsandbytes: a weight is multiplied with the reciprocal of the largest absolute value of its group, and gets the
//! value whose range it is in. Two codes share a byte, the first in its higher half. The last group may have fewer
//! weights; what lacks is 0.

use tch::{Device, Kind, Tensor};

use super::int8::{check_finite, factors};
use crate::device::trace::sent_numbers;
use crate::error::Result;
use crate::kernels::number::WithNumber;

/// The weights of a group.
const GROUP: i64 = 64;
/// The number of groups that are converted at a time.
const AT_ONCE: i64 = 1 << 12;

const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The bounds between them, which belong to the lower one.
const BOUNDS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_42,
    -0.234_607_4,
    -0.137_911_74,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_76,
    0.389_312_54,
    0.501_663_45,
    0.642_786_9,
    0.861_478_45,
];

/// The bytes of a matrix: of each group the factor, then the codes.
pub(super) fn encoded(matrix: &Tensor) -> Result<Tensor> {
    let all = matrix.f_reshape([-1])?;
    let (weights, device) = (all.size1()?, matrix.device());
    let groups = (weights + GROUP - 1) / GROUP;
    let out = Tensor::f_empty([groups, 4 + GROUP / 2], (Kind::Uint8, device))?;
    let bounds = sent_numbers(&BOUNDS, device)?;
    for start in (0..groups).step_by(AT_ONCE as usize) {
        let count = AT_ONCE.min(groups - start);
        let first = start * GROUP;
        let there = (count * GROUP).min(weights - first);
        let part = all.f_narrow(0, first, there)?.f_to_kind(Kind::Float)?;
        let part = part.f_constant_pad_nd([0, count * GROUP - there])?.f_view([count, GROUP])?;
        let largest = part.f_abs()?.f_amax([1_i64], true)?;
        check_finite(&largest)?;
        // A group of zeros gives NaN, whose code is the first, since NaN is above no bound.
        let scaled = part.f_mul(&largest.f_reciprocal()?)?;
        let scaled = scaled.f_fill_where(&scaled.f_isnan()?, -1.)?;
        let codes = scaled.f_bucketize(&bounds, true, false)?.f_to_kind(Kind::Uint8)?;
        let pairs = codes.f_view([count, GROUP / 2, 2])?;
        let packed = pairs.f_select(2, 0)?.f_mul_number(16_i64)?.f_add(&pairs.f_select(2, 1)?)?;
        let out = out.f_narrow(0, start, count)?;
        out.f_narrow(1, 0, 4)?.f_copy_(&largest.f_view_dtype(Kind::Uint8)?)?;
        out.f_narrow(1, 4, GROUP / 2)?.f_copy_(&packed)?;
    }
    Ok(out)
}

/// Writes the values of groups `[groups, 36]`.
pub(super) fn decode(groups: &Tensor, out: &Tensor) -> Result<()> {
    let factor = factors(groups)?;
    let codes = groups.f_narrow(1, 4, GROUP / 2)?.f_to_kind(Kind::Int)?.f_view([-1])?;
    let pairs = pairs(groups.device())?;
    let _ = pairs.f_index_select_out(&out.f_view([-1])?.f_view_dtype(Kind::Double)?, 0, &codes)?;
    let _ = out.shallow_clone().f_mul_(&factor)?;
    Ok(())
}

/// The two values of each byte, as one number of 64 bits, which one look-up finds.
fn pairs(device: Device) -> Result<Tensor> {
    let both: Vec<f32> = (0..256).flat_map(|byte| [VALUES[byte >> 4], VALUES[byte & 15]]).collect();
    Ok(sent_numbers(&both, device)?.f_view_dtype(Kind::Double)?)
}
