//! Attention of decoders: grouped heads, positions, windows, padding, soft caps.

use tch::{Kind, Tensor};

use super::cache::Cache;
use super::config::DecoderConfig;
use super::family::{Positions, Qkv};
use super::norm::HeadNorm;
use super::pass::Pass;
use super::rope::rotate;
use crate::error::Result;
use crate::kernels::attention as kernels;
use crate::models::parts::Linear;

/// From so many keys on, one query's attention in f32 is worth their conversion where the fused kernel is slow.
const MANY_KEYS: i64 = 64;

#[derive(Debug)]
pub(super) struct Attention {
    pub(super) layer: usize,
    pub(super) qkv: Vec<Linear>,
    pub(super) o: Linear,
    pub(super) q_norm: HeadNorm,
    pub(super) k_norm: HeadNorm,
}

impl Attention {
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        pass: &Pass,
        config: &DecoderConfig,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let (batch, length, _) = hidden.size3()?;
        let [q, k, v] = self.split(hidden, config)?;
        let q = self.turned(self.q_norm.forward(q)?, pass, config)?;
        let k = self.turned(self.k_norm.forward(k)?, pass, config)?;
        let v = v.f_transpose(1, 2)?;
        let (k, v) = match cache {
            Some(cache) => cache.extend(self.layer, &k, &v)?,
            None => (k, v),
        };
        let attended = attend(&q, &k, &v, self.layer, pass, config)?;
        let wide = config.heads * config.head_dim;
        self.o.forward(&attended.f_transpose(1, 2)?.f_reshape([batch, length, wide])?)
    }

    /// Queries, keys and values: `[batch, length, heads, head_dim]`.
    fn split(&self, hidden: &Tensor, config: &DecoderConfig) -> Result<[Tensor; 3]> {
        let (batch, length, _) = hidden.size3()?;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let apart = |x: Tensor, heads: i64| x.f_view([batch, length, heads, dim]);
        match config.family.qkv {
            Qkv::Apart => Ok([
                apart(self.qkv[0].forward(hidden)?, heads)?,
                apart(self.qkv[1].forward(hidden)?, kv_heads)?,
                apart(self.qkv[2].forward(hidden)?, kv_heads)?,
            ]),
            Qkv::Parts => {
                let all = apart(self.qkv[0].forward(hidden)?, heads + 2 * kv_heads)?;
                three(all.f_split_with_sizes([heads, kv_heads, kv_heads], 2)?)
            }
            Qkv::Groups => {
                let group = heads / kv_heads;
                let all = self.qkv[0].forward(hidden)?;
                let all = all.f_view([batch, length, kv_heads, group + 2, dim])?;
                let [q, k, v] = three(all.f_split_with_sizes([group, 1, 1], 3)?)?;
                let whole = |x: Tensor, heads: i64| x.f_reshape([batch, length, heads, dim]);
                Ok([whole(q, heads)?, whole(k, kv_heads)?, whole(v, kv_heads)?])
            }
        }
    }

    /// `[batch, length, heads, head_dim]` to `[batch, heads, length, head_dim]`, turned where the layer turns.
    fn turned(&self, x: Tensor, pass: &Pass, config: &DecoderConfig) -> Result<Tensor> {
        let x = x.f_transpose(1, 2)?;
        let side_by_side = config.positions == (Positions::Rope { side_by_side: true });
        match config.layer_ropes[self.layer] {
            Some(rope) => rotate(&x, &pass.angles[rope], side_by_side),
            None => Ok(x),
        }
    }
}

fn three(parts: Vec<Tensor>) -> Result<[Tensor; 3]> {
    let mut parts = parts.into_iter();
    let mut next = || parts.next().unwrap_or_default();
    Ok([next(), next(), next()])
}

fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    pass: &Pass,
    config: &DecoderConfig,
) -> Result<Tensor> {
    let scale = config.attention_scales[layer];
    let mask = pass.mask(config.windows[layer]);
    let causal = mask.is_none() && pass.causal;
    let dropout = if pass.train { config.attention_dropout } else { 0. };
    let grouped = config.heads != config.kv_heads;
    let fused = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::f_scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale, grouped)
    };
    let Some(cap) = config.attention_cap else {
        let boolean = mask.is_none_or(|mask| mask.kind() == Kind::Bool);
        if boolean && dropout == 0. && kernels::fused_is_slow(q)? {
            if kernels::pays(q, k)? && (causal || mask.is_some()) {
                return kernels::attend(q, k, v, mask, scale);
            }
            if q.size4()?.2 == 1 && k.size4()?.2 >= MANY_KEYS {
                let kind = q.f_kind()?;
                let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
                let (q, k, v) = (wide(q)?, wide(k)?, wide(v)?);
                return Ok(fused(&q, &k, &v)?.f_to_kind(kind)?);
            }
        }
        return Ok(fused(q, k, v)?);
    };
    // The fused kernels have no cap on the scores.
    let repeat =
        |x: &Tensor| x.f_repeat_interleave_self_int(config.heads / config.kv_heads, 1, None);
    let scores = q.f_matmul(&repeat(k)?.f_transpose(2, 3)?)?.f_mul_scalar(scale)?;
    let scores = capped(scores, Some(cap))?;
    let length = q.size4()?.2;
    let scores = match mask {
        Some(mask) => scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?,
        None if causal => {
            let hidden = Tensor::f_ones([length, length], (Kind::Bool, q.device()))?.f_triu(1)?;
            scores.f_masked_fill(&hidden, f64::NEG_INFINITY)?
        }
        None => scores,
    };
    let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(q.f_kind()?)?;
    Ok(weights.f_dropout(dropout, pass.train)?.f_matmul(&repeat(v)?)?)
}

/// cap · tanh(x / cap)
pub(super) fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => Ok(x.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?),
        None => Ok(x),
    }
}
