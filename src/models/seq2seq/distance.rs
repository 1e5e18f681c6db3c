//! T5's positions: a bias on the scores that depends on the distance.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::kernels::number::{self, WithNumber};

/// The bias on the scores of the last `queries` of `keys` positions, `[1, heads, queries, keys]`: learned per distance,
/// where far distances share a bucket, the more the farther. In both directions half of the buckets are for each.
pub(super) fn distance_bias(
    table: &Tensor,
    max_distance: i64,
    (queries, keys): (i64, i64),
    both_directions: bool,
) -> Result<Tensor> {
    let device = table.device();
    let query = number::arange(keys - queries, keys, device)?.f_unsqueeze(1)?;
    let distance = number::arange(0, keys, device)?.f_unsqueeze(0)?.f_sub(&query)?;
    let buckets = table.size()[0] / if both_directions { 2 } else { 1 };
    let (first, distance) = match both_directions {
        true => (
            distance.f_gt_number(0)?.f_to_kind(Kind::Int64)?.f_mul_number(buckets)?,
            distance.f_abs()?,
        ),
        false => (distance.f_zeros_like()?, distance.f_at_most(0)?.f_neg()?),
    };
    let exact = buckets / 2;
    let spread = (max_distance as f64 / exact as f64).ln();
    let far = distance.f_to_kind(Kind::Float)?.f_div_number(exact as f64)?.f_log()?;
    let far = far.f_div_number(spread)?.f_mul_number((buckets - exact) as f64)?;
    // Distance 0 is never far, and its logarithm no integer.
    let far = far.f_at_least(0.)?.f_to_kind(Kind::Int64)?.f_add_number(exact)?;
    let far = far.f_at_most(buckets - 1)?;
    let bucket = distance.f_where_self(&distance.f_lt_number(exact)?, &far)?.f_add(&first)?;
    let bias = Tensor::f_embedding(table, &bucket, -1, false, false)?;
    Ok(bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?)
}
