//! One block of an encoder: attention and MLP, with LayerNorm behind each.

use tch::nn::Init;
use tch::Tensor;

use super::config::EncoderConfig;
use crate::error::Result;
use crate::models::activation::Activation;
use crate::models::parts::{LayerNorm, Linear};
use crate::models::self_attention::SelfAttention;
use crate::models::weights::Weights;

#[derive(Debug)]
pub(super) struct Layer {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    output_norm: LayerNorm,
    activation: Activation,
    attention_output_dropout: f64,
    dropout: f64,
}

impl Layer {
    pub(super) fn build(weights: &Weights, config: &EncoderConfig, layer: i64) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        let names = config.family.names;
        let name = |part: &str| config.base(&format!("{}.{layer}.{part}", names.layers));
        let linear = |part: &str, from: i64, to: i64| {
            Linear::build(weights, &name(part), (from, to), true, init)
        };
        let norm = |part: &str| LayerNorm::build(weights, &name(part), size, config.norm_eps);
        Ok(Layer {
            attention: SelfAttention {
                query: linear(names.query, size, size)?,
                key: linear(names.key, size, size)?,
                value: linear(names.value, size, size)?,
                output: linear(names.attention_output, size, size)?,
                heads: config.heads,
                dropout: config.attention_dropout,
            },
            attention_norm: norm(names.attention_norm)?,
            inner: linear(names.inner, size, inner)?,
            outer: linear(names.outer, inner, size)?,
            output_norm: norm(names.output_norm)?,
            activation: config.activation,
            attention_output_dropout: match config.family.attention_output_dropout {
                true => config.dropout,
                false => 0.,
            },
            dropout: config.dropout,
        })
    }

    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let attended = self.attention.forward(hidden, mask, train)?;
        let attended = attended.f_dropout(self.attention_output_dropout, train)?;
        let hidden = self.attention_norm.forward(&hidden.f_add(&attended)?)?;
        let inner = self.activation.apply(&self.inner.forward(&hidden)?)?;
        let outer = self.outer.forward(&inner)?.f_dropout(self.dropout, train)?;
        self.output_norm.forward(&hidden.f_add(&outer)?)
    }
}
