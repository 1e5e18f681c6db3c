//! One block of a decoder: attention and MLP, with their norms.

use tch::nn::Init;
use tch::Tensor;

use super::attention::Attention;
use super::cache::Cache;
use super::config::DecoderConfig;
use super::family::{Flow, Qkv};
use super::norm::{HeadNorm, Norm};
use super::pass::Pass;
use crate::error::Result;
use crate::models::parts::Linear;
use crate::models::weights::Weights;

#[derive(Debug)]
pub(super) struct Layer {
    attention: Attention,
    /// The gate first, if there is one.
    inner: Vec<Linear>,
    outer: Linear,
    /// Before attention, behind it, before the MLP, behind it.
    norms: [Option<Norm>; 4],
}

impl Layer {
    pub(super) fn build(weights: &Weights, config: &DecoderConfig, layer: i64) -> Result<Self> {
        let (size, names) = (config.hidden_size, &config.names);
        let name = |part: &str| match part {
            "" => String::new(),
            part => format!("{}.{layer}.{part}", names.layers),
        };
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let linear = |part: &str, from: i64, to: i64, bias: bool| match config.family.transposed {
            true => Linear::build_transposed(weights, &name(part), (from, to), bias, init),
            false => Linear::build(weights, &name(part), (from, to), bias, init),
        };
        let norm = |part: &str| Norm::build(weights, config, &name(part), size);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let widths = match config.family.qkv {
            Qkv::Apart => vec![wide, narrow, narrow],
            Qkv::Parts | Qkv::Groups => vec![wide + 2 * narrow],
        };
        let qkv = names.qkv.iter().zip(widths);
        let qkv = qkv.map(|(part, width)| linear(part, size, width, config.qkv_bias));
        // Gate and up in one matrix where there is one name for both.
        let both = if config.family.gated { 2 } else { 1 };
        let inner_width = config.intermediate_size * both / names.inner.len() as i64;
        let inner = names.inner.iter().map(|part| linear(part, size, inner_width, config.mlp_bias));
        let head_norm =
            |part: &str, heads: i64| HeadNorm::build(weights, config, &name(part), heads);
        let [n0, n1, n2, n3] = names.norms.map(norm);
        Ok(Layer {
            norms: [n0?, n1?, n2?, n3?],
            attention: Attention {
                layer: layer as usize,
                qkv: qkv.collect::<Result<_>>()?,
                o: linear(names.o, wide, size, config.o_bias)?,
                q_norm: head_norm(names.qk_norms[0], config.heads)?,
                k_norm: head_norm(names.qk_norms[1], config.kv_heads)?,
            },
            inner: inner.collect::<Result<_>>()?,
            outer: linear(names.outer, config.intermediate_size, size, config.mlp_bias)?,
        })
    }

    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        pass: &Pass,
        config: &DecoderConfig,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let [before_attention, after_attention, before_mlp, after_mlp] = &self.norms;
        let normed = optional(before_attention, hidden)?;
        let attended = self.attention.forward(&normed, pass, config, cache)?;
        if config.flow == Flow::Parallel {
            let own = before_mlp.as_ref().map(|norm| norm.forward(hidden)).transpose()?;
            let out = self.mlp(own.as_ref().unwrap_or(&normed), config)?;
            let attended = added(attended, pass, config, 0)?;
            return Ok(hidden.f_add(&attended)?.f_add(&added(out, pass, config, 1)?)?);
        }
        // The norms behind stand on the branches or on the sums.
        let on_sums = config.flow == Flow::NormedSums;
        let branch = |x: Tensor, norm: &Option<Norm>| match on_sums {
            true => Ok(x),
            false => optional(norm, &x),
        };
        let sum = |x: Tensor, norm: &Option<Norm>| match on_sums {
            true => optional(norm, &x),
            false => Ok(x),
        };
        let residual = if config.residual_from_norm { &normed } else { hidden };
        let attended = added(branch(attended, after_attention)?, pass, config, 0)?;
        let hidden = sum(residual.f_add(&attended)?, after_attention)?;
        let normed = optional(before_mlp, &hidden)?;
        let out = branch(self.mlp(&normed, config)?, after_mlp)?;
        let residual = if config.residual_from_norm { &normed } else { &hidden };
        sum(residual.f_add(&added(out, pass, config, 1)?)?, after_mlp)
    }

    fn mlp(&self, x: &Tensor, config: &DecoderConfig) -> Result<Tensor> {
        let act = config.activation;
        let inner = match (self.inner.as_slice(), config.family.gated) {
            ([gate, up], _) => act.apply(&gate.forward(x)?)?.f_mul(&up.forward(x)?)?,
            ([both], true) => {
                let both = both.forward(x)?.f_chunk(2, -1)?;
                act.apply(&both[0])?.f_mul(&both[1])?
            }
            (layers, _) => {
                let mut inner = x.shallow_clone();
                for layer in layers {
                    inner = act.apply(&layer.forward(&inner)?)?;
                }
                inner
            }
        };
        self.outer.forward(&inner)
    }
}

fn optional(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or(Ok(x.shallow_clone()), |norm| norm.forward(x))
}

/// What attention (0) or MLP (1) adds: scaled, with dropout.
fn added(x: Tensor, pass: &Pass, config: &DecoderConfig, branch: usize) -> Result<Tensor> {
    let x = scaled(x, config.residual_scale)?;
    dropped(x, config.residual_dropout[branch], pass.train)
}

pub(super) fn dropped(x: Tensor, dropout: f64, train: bool) -> Result<Tensor> {
    match train && dropout > 0. {
        true => Ok(x.f_dropout(dropout, true)?),
        false => Ok(x),
    }
}

pub(super) fn scaled(x: Tensor, factor: f64) -> Result<Tensor> {
    match factor == 1. {
        true => Ok(x),
        false => Ok(x.f_mul_scalar(factor)?),
    }
}
