//! Attention: libtorch's fused kernels, and plain matrix products with all scores at once, which are faster for short
//! sequences than a fused kernel whose products are slow.

use tch::Tensor;

use crate::device::cudnn::{apply_defaults, where_it_pays};
use crate::error::Result;
use crate::kernels::fused;
use crate::kernels::fused_forms::Attended;
use crate::kernels::number::WithNumber;

/// The number of the kernel that libtorch takes where no fused one fits.
const MATH: i64 = 0;

/// Keys or values `[batch, kv_heads, length, head_dim]` for each of the queries' heads: `[batch, heads, length,
/// head_dim]`.
pub(crate) fn repeated(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (batch, kv_heads, length, dim) = x.size4()?;
    if kv_heads == heads {
        return Ok(x.shallow_clone());
    }
    let group = [batch, kv_heads, heads / kv_heads, length, dim];
    Ok(x.f_unsqueeze(2)?.f_expand(group, false)?.f_reshape([batch, heads, length, dim])?)
}

/// Attention by `attend` with the queries of a group of heads, which have the same keys, as queries of one head:
/// `[batch, kv_heads, length · group, head_dim]`. Its result is in their order; the whole has that of queries.
pub(crate) fn in_groups(
    q: &Tensor,
    k: &Tensor,
    attend: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let ((batch, heads, length, dim), kv_heads) = (q.size4()?, k.size4()?.1);
    let group = heads / kv_heads;
    let q = q.f_reshape([batch, kv_heads, group, length, dim])?.f_transpose(2, 3)?;
    let attended = attend(&q.f_reshape([batch, kv_heads, length * group, dim])?)?;
    let dim = attended.size4()?.3;
    // The memory order that the next product expects.
    let attended = attended.f_reshape([batch, kv_heads, length, group, dim])?;
    let attended = attended.f_permute([0, 2, 1, 3, 4])?.f_reshape([batch, length, heads, dim])?;
    Ok(attended.f_transpose(1, 2)?)
}

/// libtorch's attention; keys and values may have fewer heads than queries.
pub(crate) fn fused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    dropout: f64,
    causal: bool,
    scale: f64,
) -> Result<Tensor> {
    let (heads, grouped) = (q.size4()?.1, q.size4()?.1 != k.size4()?.1);
    let compute = |q: &Tensor, k: &Tensor, v: &Tensor| -> Result<Tensor> {
        Ok(Tensor::f_scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale, grouped)?)
    };
    if q.device().is_cuda() {
        apply_defaults();
        if mask.is_none() && dropout == 0. {
            if let Some(_cudnn) = where_it_pays([q, k, v], causal, compute)? {
                return compute(q, k, v);
            }
        }
        // Not all kernels know groups of heads. All scores at once would take far more memory than repeated keys.
        let choice =
            || Tensor::f_internal_fused_sdp_choice(q, k, v, mask, dropout, causal, scale, true);
        if grouped && choice()? == MATH {
            if mask.is_none() && !causal {
                return in_groups(q, k, |q| fused(q, k, v, None, dropout, causal, scale));
            }
            let (k, v) = (repeated(k, heads)?, repeated(v, heads)?);
            return fused(q, &k, &v, mask, dropout, causal, scale);
        }
    }
    compute(q, k, v)
}

/// Scaled dot-product attention of queries `[batch, heads, length, head_dim]`; keys and values may have fewer heads.
/// `mask`, `[length, length]` or `[batch, 1, length or 1, length]`, is true where a position may attend; without it, a
/// position attends to itself and earlier ones if `causal`, else to all.
pub(crate) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
    scale: f64,
) -> Result<Tensor> {
    if let Some(attended) = fused::attend(q, k, v, Attended { mask, causal, scale, cap: None })? {
        return Ok(attended);
    }
    let (batch, heads, length, dim) = q.size4()?;
    let (kv_heads, value_dim) = (k.size4()?.1, v.size4()?.3);
    let group = heads / kv_heads;
    // The queries of a group are rows of one matrix, so that keys and values are not repeated.
    let q = q.f_view([batch, kv_heads, group, length, dim])?.f_transpose(2, 3)?;
    let q = q.f_reshape([batch * kv_heads, length * group, dim])?;
    let k = k.f_reshape([batch * kv_heads, length, dim])?.f_transpose(1, 2)?;
    let v = v.f_reshape([batch * kv_heads, length, value_dim])?;
    let options = (q.f_kind()?, q.device());
    let all = || Tensor::f_zeros([1, 1, 1], options)?.f_scaled_product(&q, &k, 0., scale);
    let scores = match mask {
        None if !causal => all()?,
        None => {
            let hidden = Tensor::f_empty([length, length], options)?
                .f_fill_(f64::NEG_INFINITY)?
                .f_triu(1)?;
            let hidden = hidden.f_unsqueeze(1)?.f_expand([length, group, length], false)?;
            hidden.f_reshape([1, length * group, length])?.f_scaled_product(&q, &k, 1., scale)?
        }
        Some(mask) => {
            let scores = all()?;
            let hidden = mask.f_logical_not()?;
            // Broadcasts over the kv heads and the group.
            let hidden = match hidden.dim() {
                2 => hidden.f_unsqueeze(1)?,
                _ => hidden.f_unsqueeze(3)?,
            };
            let apart = scores.f_view([batch, kv_heads, length, group, length])?;
            let masked = apart.f_fill_where(&hidden, f64::NEG_INFINITY)?;
            masked.f_view([batch * kv_heads, length * group, length])?
        }
    };
    let attended = scores.f_softmax(-1, None)?.f_bmm(&v)?;
    let attended = attended.f_view([batch, kv_heads, length, group, value_dim])?;
    // The memory order that the next product expects.
    let attended = attended.f_permute([0, 2, 1, 3, 4])?;
    Ok(attended.f_reshape([batch, length, heads, value_dim])?.f_transpose(1, 2)?)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn it_is_the_fused_attention() {
        tch::set_num_threads(1);
        let (batch, heads, kv_heads, length, dim) = (2, 6, 2, 40, 8);
        let options = (Kind::Float, Device::Cpu);
        let random = |heads: i64| {
            Tensor::randn([batch, length, heads, dim], options).set_requires_grad(true)
        };
        let [q, k, v] = [random(heads), random(kv_heads), random(kv_heads)];
        let upstream = Tensor::randn([batch, heads, length, dim], options);
        let causal = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).tril(0);
        let window = causal.logical_and(&causal.triu(-7));
        let padding = Tensor::arange(length, (Kind::Int64, Device::Cpu)).ge(5);
        let padding = Tensor::stack(&[padding.ones_like(), padding], 0).view([batch, 1, 1, length]);
        let own = Tensor::eye(length, options).to_kind(Kind::Bool);
        let padded = causal.logical_and(&padding).logical_or(&own);
        let tokens = padding.shallow_clone();
        let cases = [(None, true), (None, false), (Some(&window), false), (Some(&padded), false)];
        for (mask, causal) in cases.into_iter().chain([(Some(&tokens), false)]) {
            let [found, expected] = [true, false].map(|own| {
                let [q, k, v] = [&q, &k, &v].map(|x| x.transpose(1, 2));
                let attended = if own {
                    attend(&q, &k, &v, mask, causal, 0.3).unwrap()
                } else {
                    Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0., causal, 0.3, true)
                };
                let sum = (&attended * &upstream).sum(Kind::Float);
                let inputs = [&q, &k, &v];
                let mut all = Tensor::run_backward(&[sum], &inputs, false, false);
                all.push(attended.detach());
                all
            });
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.size(), expected.size());
                let off = (found - expected).abs().max().double_value(&[]);
                assert!(off <= 1e-5, "{off} off");
            }
        }
    }
}
