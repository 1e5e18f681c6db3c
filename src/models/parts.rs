//! What blocks are made of: linear layers and norms.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::decoder_config::DecoderConfig;
use super::weights::Weights;
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

/// Several linear layers of one input: a matrix each, or one matrix for all with the widths of the parts.
#[derive(Debug)]
pub(super) enum Projections {
    Apart(Vec<Linear>),
    Fused(Linear, Vec<i64>),
}

/// LayerNorm (arXiv 1607.06450).
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// RMSNorm (arXiv 1910.07467).
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
    zero_centred: bool,
}

impl Linear {
    pub(super) fn build(
        weights: &Weights,
        name: &str,
        (from, to): (i64, i64),
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let weight = weights.tensor(&format!("{name}.weight"), &[to, from], init)?;
        let bias = match bias {
            true => Some(weights.tensor(&format!("{name}.bias"), &[to], Init::Const(0.))?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

impl Projections {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        match self {
            Projections::Apart(layers) => layers.iter().map(|layer| layer.forward(x)).collect(),
            Projections::Fused(layer, widths) => {
                Ok(layer.forward(x)?.f_split_with_sizes(widths, -1)?)
            }
        }
    }
}

impl LayerNorm {
    pub(super) fn build(weights: &Weights, name: &str, size: i64, eps: f64) -> Result<Self> {
        let size = [size];
        Ok(LayerNorm {
            weight: weights.tensor(&format!("{name}.weight"), &size, Init::Const(1.))?,
            bias: weights.tensor(&format!("{name}.bias"), &size, Init::Const(0.))?,
            eps,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = self.weight.size();
        Ok(x.f_layer_norm(&shape, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}

impl Norm {
    pub(super) fn build(
        weights: &Weights,
        config: &DecoderConfig,
        name: &str,
        size: i64,
    ) -> Result<Self> {
        let init = Init::Const(if config.zero_centred { 0. } else { 1. });
        Ok(Norm {
            weight: weights.tensor(&format!("{name}.weight"), &[size], init)?,
            eps: config.norm_eps,
            zero_centred: config.zero_centred,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = self.weight.size();
        if !self.zero_centred {
            return Ok(x.f_rms_norm(&shape, Some(&self.weight), self.eps)?);
        }
        // Gemma's: in f32, 1 + w included, since that sum would be rounded in bf16.
        let weight = self.weight.f_to_kind(Kind::Float)?.f_add_scalar(1.)?;
        let normed = x.f_to_kind(Kind::Float)?.f_rms_norm(&shape, Some(&weight), self.eps)?;
        Ok(normed.f_to_kind(x.f_kind()?)?)
    }
}
