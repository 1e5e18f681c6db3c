//! The scores of queries and keys, and what they make of values.

use tch::{Kind, Tensor};

use super::mask::Mask;
use crate::error::Result;
use crate::kernels::attention as kernels;
use crate::kernels::attention_choice::{in_f32, way, AttentionWay};
use crate::kernels::fused;
use crate::kernels::fused_forms::Attended;
use crate::kernels::number::WithNumber;

/// From queries and keys to weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::models) struct Scores {
    /// The factor of the scores.
    pub(in crate::models) scale: f64,
    /// Bounds them as Gemma 2 does.
    pub(in crate::models) cap: Option<f64>,
    pub(in crate::models) dropout: f64,
}

/// Queries `[batch, heads, length, head_dim]`, keys and values with fewer heads perhaps.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scores: Scores,
) -> Result<Tensor> {
    let (_, heads, length, _) = q.size4()?;
    if k.size4()?.1 < heads && mask.is_grouped(length, q.device()) {
        let one = length == 1;
        // After the rotation, queries and keys are parts of one tensor, all of which the keys would keep for the
        // backward pass.
        let k = if one { k.shallow_clone() } else { k.f_contiguous()? };
        return kernels::in_groups(q, &k, |q| attend_heads(q, &k, v, mask, scores, one));
    }
    attend_heads(q, k, v, mask, scores, length == 1)
}

/// The mask is that of these queries. `one`: they are those of one place.
fn attend_heads(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scores: Scores,
    one: bool,
) -> Result<Tensor> {
    if let Some(cap) = scores.cap {
        return attend_with_cap(q, k, v, mask, scores, cap);
    }
    let Scores { scale, dropout, .. } = scores;
    let (given, causal) = match mask {
        Mask::Everything => (None, false),
        Mask::Causal => (None, true),
        Mask::Seen(mask) | Mask::Added(mask) => (Some(mask), false),
    };
    let fused =
        |q: &Tensor, k: &Tensor, v: &Tensor| kernels::fused(q, k, v, given, dropout, causal, scale);
    if matches!(mask, Mask::Added(_)) || dropout > 0. {
        return fused(q, k, v);
    }
    match way(q, k, one)? {
        AttentionWay::Fused => fused(q, k, v),
        AttentionWay::Products => kernels::attend(q, k, v, given, causal, scale),
        AttentionWay::InF32 => in_f32([q, k, v], fused),
    }
}

/// The fused kernels have no cap on the scores.
fn attend_with_cap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scores: Scores,
    cap: f64,
) -> Result<Tensor> {
    let seen = match mask {
        Mask::Everything => Some((None, false)),
        Mask::Causal => Some((None, true)),
        Mask::Seen(seen) => Some((Some(seen), false)),
        Mask::Added(_) => None,
    };
    if let Some((mask, causal)) = seen.filter(|_| scores.dropout == 0.) {
        let how = Attended { mask, causal, scale: scores.scale, cap: Some(cap) };
        if let Some(attended) = fused::attend(q, k, v, how)? {
            return Ok(attended);
        }
    }
    let (_, heads, length, _) = q.size4()?;
    let repeat = |x: &Tensor| kernels::repeated(x, heads);
    let products = q.f_matmul(&repeat(k)?.f_transpose(2, 3)?)?.f_mul_number(scores.scale)?;
    let products = capped(products, Some(cap))?;
    let hidden =
        |x: Tensor, seen: &Tensor| x.f_fill_where(&seen.f_logical_not()?, f64::NEG_INFINITY);
    let products = match mask {
        Mask::Everything => products,
        Mask::Causal => {
            let all = Tensor::f_ones([length, length], (Kind::Bool, q.device()))?;
            hidden(products, &all.f_tril(0)?)?
        }
        Mask::Seen(seen) => hidden(products, seen)?,
        Mask::Added(added) => products.f_add(added)?,
    };
    let weights = products.f_softmax(-1, Kind::Float)?.f_to_kind(q.f_kind()?)?;
    Ok(weights.f_dropout(scores.dropout, scores.dropout > 0.)?.f_matmul(&repeat(v)?)?)
}

/// cap · tanh(x / cap)
pub(in crate::models) fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => Ok(x.f_div_number(cap)?.f_tanh()?.f_mul_number(cap)?),
        None => Ok(x),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::models::nn::mask::Places;

    /// Attention in the forms that CUDA gets: masks added in rows, queries in groups, keys repeated.
    #[test]
    fn groups_and_rows_for_kernels_change_no_value_and_no_gradient() {
        tch::set_num_threads(1);
        let options = (Kind::Float, Device::Cpu);
        let (batch, heads, kv_heads, dim) = (2, 6, 2, 8);
        let tokens = Tensor::from_slice2(&[[false; 21], [true; 21]]);
        let _ = tokens.narrow(1, 5, 16).fill_(1);
        let documents =
            Tensor::arange(21, (Kind::Int64, Device::Cpu)).divide_scalar_mode(8, "floor");
        let documents = documents.expand([batch, 21], false).contiguous();
        for (start, length) in [(0, 21), (20, 1), (0, 1)] {
            let total = start + length;
            let make = |heads: i64, length: i64| {
                Tensor::randn([batch, length, heads, dim], options).set_requires_grad(true)
            };
            let qkv = [make(heads, length), make(kv_heads, total), make(kv_heads, total)];
            let [q, k, v] = [0, 1, 2].map(|i| qkv[i].transpose(1, 2));
            let upstream = Tensor::randn([batch, heads, length, dim], options);
            let all = |attended: Tensor| {
                let sum = (&attended * &upstream).sum(Kind::Float);
                let mut all = Tensor::run_backward(&[sum], &qkv, false, false);
                all.push(attended.detach());
                all
            };
            let tokens = tokens.narrow(1, 0, total);
            let documents = documents.narrow(1, 0, total);
            let whole = Places {
                start,
                length,
                device: Device::Cpu,
                tokens: None,
                documents: None,
                blocks: None,
            };
            let padded = Places { tokens: Some(&tokens), ..whole };
            let packed = Places { documents: Some(&documents), ..whole };
            let slopes = || Tensor::randn([1, heads, 1, total], options);
            let mut masks = vec![
                Mask::causal(&padded, None).unwrap(),
                Mask::causal(&padded, Some(7)).unwrap(),
                Mask::causal(&whole, Some(7)).unwrap(),
                Mask::causal(&whole, None).unwrap().with_bias(slopes(), &whole).unwrap(),
                Mask::causal(&padded, None).unwrap().with_bias(slopes(), &padded).unwrap(),
            ];
            if start == 0 {
                masks.push(Mask::causal(&packed, None).unwrap());
            }
            masks.retain(|mask| mask.is_grouped(1, Device::Cpu));
            let scores = |cap| Scores { scale: 0.3, cap, dropout: 0. };
            for (mask, cap) in masks.iter().flat_map(|mask| [(mask, None), (mask, Some(2.))]) {
                let expected = all(attend_heads(&q, &k, &v, mask, scores(cap), false).unwrap());
                let rows = mask
                    .shallow_clone()
                    .of_groups((heads, kv_heads))
                    .unwrap()
                    .in_rows(Kind::Float)
                    .unwrap();
                if let Mask::Added(added) = &rows {
                    let strides = added.stride();
                    let (last, others) = strides.split_last().unwrap();
                    assert!(
                        *last == 1 && others.iter().all(|stride| stride % 16 == 0),
                        "{strides:?}"
                    );
                }
                let attend = |q: &Tensor| attend_heads(q, &k, &v, &rows, scores(cap), false);
                let found = all(kernels::in_groups(&q, &k, attend).unwrap());
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.size(), expected.size());
                    let off = (found - expected).abs().max().double_value(&[]);
                    assert!(off <= 1e-5, "{off} off for {length} behind {start}, {mask:?}");
                }
            }
            let causal = if start == 0 { Mask::Causal } else { Mask::Everything };
            let expected = all(attend(&q, &k, &v, &causal, scores(None)).unwrap());
            let [k, v] = [&k, &v].map(|x| kernels::repeated(x, heads).unwrap());
            let found = all(attend(&q, &k, &v, &causal, scores(None)).unwrap());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs().max().double_value(&[]) <= 1e-5);
            }
        }
    }
}
