//! The norms of encoder-decoders.

use tch::nn::Init;
use tch::Tensor;

use super::config::{Family, Seq2SeqConfig};
use crate::error::Result;
use crate::models::parts::LayerNorm;
use crate::models::weights::Weights;

/// LayerNorm in BART's kin, RMSNorm in T5's.
#[derive(Debug)]
pub(super) enum Norm {
    Layer(LayerNorm),
    Rms { weight: Tensor, eps: f64 },
}

impl Norm {
    pub(super) fn build(weights: &Weights, config: &Seq2SeqConfig, name: &str) -> Result<Self> {
        let (size, eps) = (config.hidden_size, config.norm_eps);
        match config.family {
            Family::Bart => Ok(Norm::Layer(LayerNorm::build(weights, name, size, eps)?)),
            Family::T5 => {
                let init = Init::Const(config.init);
                let weight = weights.tensor(&format!("{name}.weight"), &[size], init)?;
                Ok(Norm::Rms { weight, eps })
            }
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, eps) = match self {
            Norm::Layer(norm) => return norm.forward(x),
            Norm::Rms { weight, eps } => (weight, *eps),
        };
        let kind = weight.f_kind()?;
        if x.f_kind()? == kind {
            return Ok(x.f_rms_norm(weight.size(), Some(weight), eps)?);
        }
        let normed = x.f_rms_norm(weight.size(), None::<&Tensor>, eps)?;
        Ok(normed.f_to_kind(kind)?.f_mul(weight)?)
    }
}
