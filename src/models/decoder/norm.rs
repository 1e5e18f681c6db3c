//! The norms of decoders: on hidden states, and on queries and keys.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::config::DecoderConfig;
use super::family::{NormKind, QkNorm};
use crate::error::Result;
use crate::models::weights::Weights;

/// RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450).
#[derive(Debug)]
pub(super) struct Norm {
    kind: NormKind,
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// `None` where there is no such norm: it has no name.
    pub(super) fn build(
        weights: &Weights,
        config: &DecoderConfig,
        name: &str,
        size: i64,
    ) -> Result<Option<Self>> {
        if name.is_empty() || name.ends_with('.') {
            return Ok(None);
        }
        let kind = config.family.norm;
        let init = Init::Const(if kind == NormKind::RmsFromOne { 0. } else { 1. });
        let bias = match kind {
            NormKind::Layer => {
                Some(weights.tensor(&format!("{name}.bias"), &[size], Init::Const(0.))?)
            }
            _ => None,
        };
        let weight = weights.tensor(&format!("{name}.weight"), &[size], init)?;
        Ok(Some(Norm { kind, weight, bias, eps: config.norm_eps }))
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = self.weight.size();
        match self.kind {
            NormKind::Rms => Ok(x.f_rms_norm(&shape, Some(&self.weight), self.eps)?),
            NormKind::RmsFromOne => {
                // In f32, 1 + w included, since that sum would be rounded in bf16.
                let weight = self.weight.f_to_kind(Kind::Float)?.f_add_scalar(1.)?;
                let x32 = x.f_to_kind(Kind::Float)?;
                let normed = x32.f_rms_norm(&shape, Some(&weight), self.eps)?;
                Ok(normed.f_to_kind(x.f_kind()?)?)
            }
            NormKind::Layer | NormKind::LayerWithoutBias => {
                let (weight, bias) = (Some(&self.weight), self.bias.as_ref());
                Ok(x.f_layer_norm(&shape, weight, bias, self.eps, true)?)
            }
        }
    }
}

/// Norms each head of queries or of keys.
#[derive(Debug)]
pub(super) enum HeadNorm {
    None,
    /// `[head_dim]`, or all heads together.
    Shared {
        norm: Norm,
        whole: bool,
    },
    /// One tensor `[heads, head_dim]`, or `[head_dim]` per head.
    Own {
        weights: Vec<Tensor>,
        eps: f64,
    },
}

impl HeadNorm {
    pub(super) fn build(
        weights: &Weights,
        config: &DecoderConfig,
        name: &str,
        heads: i64,
    ) -> Result<Self> {
        let size = config.head_dim;
        let (size, whole) = match config.qk_norm {
            QkNorm::None => return Ok(HeadNorm::None),
            QkNorm::OwnHeads { listed } => {
                let init = Init::Const(1.);
                let own = match listed {
                    true => (0..heads)
                        .map(|h| weights.tensor(&format!("{name}.norms.{h}.weight"), &[size], init))
                        .collect::<Result<_>>()?,
                    false => {
                        vec![weights.tensor(&format!("{name}.weight"), &[heads, size], init)?]
                    }
                };
                return Ok(HeadNorm::Own { weights: own, eps: config.norm_eps });
            }
            QkNorm::Heads => (size, false),
            QkNorm::Whole => (heads * size, true),
        };
        Ok(match Norm::build(weights, config, name, size)? {
            Some(norm) => HeadNorm::Shared { norm, whole },
            None => HeadNorm::None,
        })
    }

    /// `[batch, length, heads, head_dim]` to the same.
    pub(super) fn forward(&self, x: Tensor) -> Result<Tensor> {
        match self {
            HeadNorm::None => Ok(x),
            HeadNorm::Shared { norm, whole: false } => norm.forward(&x),
            HeadNorm::Shared { norm, whole: true } => {
                Ok(norm.forward(&x.f_flatten(2, 3)?)?.f_reshape(x.size())?)
            }
            HeadNorm::Own { weights, eps } => {
                let weight = match weights.as_slice() {
                    [one] if one.dim() == 2 => one.shallow_clone(),
                    listed => Tensor::f_stack(listed, 0)?,
                };
                let size = [weight.size()[1]];
                let x32 = x.f_to_kind(Kind::Float)?;
                let normed =
                    x32.f_layer_norm(size, None::<&Tensor>, None::<&Tensor>, *eps, true)?;
                let normed = normed.f_mul(&weight.f_to_kind(Kind::Float)?)?;
                Ok(normed.f_to_kind(x.f_kind()?)?)
            }
        }
    }
}
