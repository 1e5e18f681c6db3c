//! Eight bits per weight, with a factor per row: the factor in f32, then the row.

use tch::{Device, Kind, Tensor};

use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;

/// The number of weights that are converted at a time.
const AT_ONCE: i64 = 1 << 18;

/// The bytes of a matrix. Rounds half to even.
pub(super) fn encoded(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.size2()?;
    let out = Tensor::f_empty([rows, columns + 4], (Kind::Uint8, matrix.device()))?;
    let chunk = (AT_ONCE / columns.max(1)).max(1);
    for start in (0..rows).step_by(chunk as usize) {
        let count = chunk.min(rows - start);
        let part = matrix.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?;
        let largest = part.f_abs()?.f_amax([1_i64], true)?;
        check_finite(&largest)?;
        let factor = largest.f_div_number(127.)?;
        // All weights of a row are 0 if its factor is.
        let whole = part.f_div(&factor)?.f_round()?.f_nan_to_num(0., 127., -127.)?;
        let whole = whole.f_bound(-127., 127.)?.f_to_kind(Kind::Int8)?;
        let out = out.f_narrow(0, start, count)?;
        out.f_narrow(1, 0, 4)?.f_copy_(&factor.f_view_dtype(Kind::Uint8)?)?;
        out.f_narrow(1, 4, columns)?.f_copy_(&whole.f_view_dtype(Kind::Uint8)?)?;
    }
    Ok(out)
}

/// Writes the values of rows `[rows, 4 + columns]`.
pub(super) fn decode(groups: &Tensor, out: &Tensor) -> Result<()> {
    let columns = groups.size2()?.1 - 4;
    let factor = factors(groups)?;
    let mut out = out.shallow_clone();
    out.f_copy_(&groups.f_narrow(1, 4, columns)?.f_view_dtype(Kind::Int8)?)?;
    let _ = out.f_mul_(&factor)?;
    Ok(())
}

/// The f32 that each group begins with, `[groups, 1]`.
pub(super) fn factors(groups: &Tensor) -> Result<Tensor> {
    // Always a copy: a single group is contiguous at any place, and f32 are not.
    let bytes = (Kind::Uint8, groups.device());
    let mut first = Tensor::f_empty([groups.size2()?.0, 4], bytes)?;
    first.f_copy_(&groups.f_narrow(1, 0, 4)?)?;
    Ok(first.f_view_dtype(Kind::Float)?)
}

/// Refuses largest absolute values that are NaN or infinite.
pub(super) fn check_finite(largest: &Tensor) -> Result<()> {
    let all = largest.f_isfinite()?.f_all()?.f_to_device(Device::Cpu)?;
    if !bool::try_from(all)? {
        refuse!(NonFinite, "a matrix that holds NaN or infinity cannot be quantised");
    }
    Ok(())
}
