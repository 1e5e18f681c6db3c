//! Attention of decoders: grouped heads, rotary positions, windows, padding, soft caps.

use tch::{Device, Kind, Tensor};

use super::decoder_config::{DecoderConfig, QkNorm};
use super::parts::{Linear, Norm, Projections};
use super::rope::rotate;
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Attention {
    pub(super) qkv: Projections,
    pub(super) o: Linear,
    pub(super) qk_norms: Option<(Norm, Norm)>,
    pub(super) window: Option<i64>,
    pub(super) rope: Option<usize>,
}

/// What all layers share in one pass.
pub(super) struct Pass<'a> {
    /// Per rope.
    pub(super) angles: Vec<(Tensor, Tensor)>,
    /// `[batch, length]`, true where there is a token; `None`: everywhere.
    pub(super) tokens: Option<&'a Tensor>,
    pub(super) train: bool,
}

impl Attention {
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        pass: &Pass,
        config: &DecoderConfig,
    ) -> Result<Tensor> {
        let (batch, length, _) = hidden.size3()?;
        let qkv = self.qkv.forward(hidden)?;
        let norms = self.qk_norms.as_ref();
        let q = self.turned(&qkv[0], config.heads, norms.map(|norms| &norms.0), pass, config)?;
        let k = self.turned(&qkv[1], config.kv_heads, norms.map(|norms| &norms.1), pass, config)?;
        let v = qkv[2].f_reshape([batch, length, config.kv_heads, config.head_dim])?;
        let v = v.f_transpose(1, 2)?;
        let mask = self.mask(length, pass, hidden.device())?;
        let dropout = if pass.train { config.attention_dropout } else { 0. };
        let grouped = config.heads != config.kv_heads;
        let attended = match config.attention_cap {
            None => Tensor::f_scaled_dot_product_attention(
                &q,
                &k,
                &v,
                mask.as_ref(),
                dropout,
                mask.is_none(),
                config.attention_scale,
                grouped,
            )?,
            // The fused kernels have no cap on the scores.
            Some(_) => {
                let repeat = |x: Tensor| {
                    x.f_repeat_interleave_self_int(config.heads / config.kv_heads, 1, None)
                };
                let scores = q.f_matmul(&repeat(k)?.f_transpose(2, 3)?)?;
                let scores =
                    capped(scores.f_mul_scalar(config.attention_scale)?, config.attention_cap)?;
                let mask = match mask {
                    Some(mask) => mask,
                    None => causal(length, None, hidden.device())?,
                };
                let scores = scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
                let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(q.f_kind()?)?;
                weights.f_dropout(dropout, pass.train)?.f_matmul(&repeat(v)?)?
            }
        };
        let wide = config.heads * config.head_dim;
        self.o.forward(&attended.f_transpose(1, 2)?.f_reshape([batch, length, wide])?)
    }

    /// Queries or keys, normed and turned: `[batch, heads, length, head_dim]`.
    fn turned(
        &self,
        x: &Tensor,
        heads: i64,
        norm: Option<&Norm>,
        pass: &Pass,
        config: &DecoderConfig,
    ) -> Result<Tensor> {
        let (batch, length, _) = x.size3()?;
        let split = [batch, length, heads, config.head_dim];
        let x = match (norm, config.qk_norm) {
            (Some(norm), QkNorm::Whole) => norm.forward(x)?.f_reshape(split)?,
            (Some(norm), _) => norm.forward(&x.f_reshape(split)?)?,
            (None, _) => x.f_reshape(split)?,
        };
        let x = x.f_transpose(1, 2)?;
        self.rope.map_or(Ok(x.shallow_clone()), |rope| rotate(&x, &pass.angles[rope]))
    }

    /// True where a position may look; none where plain causality is all there is.
    fn mask(&self, length: i64, pass: &Pass, device: Device) -> Result<Option<Tensor>> {
        let window = self.window.filter(|window| *window < length);
        let Some(tokens) = pass.tokens else {
            return window.map(|window| causal(length, Some(window), device)).transpose();
        };
        let seen = causal(length, window, device)?
            .f_logical_and(&tokens.f_unsqueeze(1)?.f_unsqueeze(1)?)?;
        // Padding looks at itself: a row without any place to look at is not a number.
        let own = Tensor::f_eye(length, (Kind::Bool, device))?;
        Ok(Some(seen.f_logical_or(&own)?))
    }
}

/// `[length, length]`, true for each position and those before it, as far as the window goes.
fn causal(length: i64, window: Option<i64>, device: Device) -> Result<Tensor> {
    let seen = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_tril(0)?;
    match window {
        Some(window) => Ok(seen.f_triu(1 - window)?),
        None => Ok(seen),
    }
}

/// cap · tanh(x / cap)
pub(super) fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => Ok(x.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?),
        None => Ok(x),
    }
}
