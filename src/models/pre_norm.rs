//! The block of vision transformers and of CLIP: LayerNorms stand before attention and MLP.

use tch::nn::Init;
use tch::Tensor;

use super::activation::Activation;
use super::parts::{LayerNorm, Linear};
use super::self_attention::SelfAttention;
use super::weights::Weights;
use crate::error::Result;

#[derive(Debug)]
pub(super) struct PreNormBlock {
    norms: [LayerNorm; 2],
    attention: SelfAttention,
    /// The gate first, if there is one.
    inner: Vec<Linear>,
    outer: Linear,
    /// What attention and MLP are multiplied with (LayerScale, arXiv 2103.17239).
    scales: Option<[Tensor; 2]>,
    activation: Activation,
    dropout: f64,
}

/// Names below the block.
pub(super) struct BlockNames {
    pub(super) norms: [&'static str; 2],
    pub(super) qkv: [&'static str; 3],
    pub(super) o: &'static str,
    pub(super) inner: &'static [&'static str],
    pub(super) outer: &'static str,
    pub(super) scales: Option<[&'static str; 2]>,
}

/// Widths and settings of a block.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BlockShape {
    pub(super) size: i64,
    pub(super) inner: i64,
    pub(super) heads: i64,
    pub(super) qkv_bias: bool,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    /// On what attention and MLP add.
    pub(super) dropout: f64,
    pub(super) attention_dropout: f64,
    /// The initial value of the scales.
    pub(super) scale: f64,
    pub(super) initializer_range: f64,
}

impl PreNormBlock {
    pub(super) fn build(
        weights: &Weights,
        prefix: &str,
        names: &BlockNames,
        shape: &BlockShape,
    ) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: shape.initializer_range };
        let (size, inner) = (shape.size, shape.inner);
        let name = |part: &str| format!("{prefix}.{part}");
        let linear = |part: &str, from: i64, to: i64, bias: bool| {
            Linear::build(weights, &name(part), (from, to), bias, init)
        };
        let qkv = |part: &str| linear(part, size, size, shape.qkv_bias);
        let norm = |part: &str| LayerNorm::build(weights, &name(part), size, shape.norm_eps);
        let scale = |part: &str| weights.tensor(&name(part), &[size], Init::Const(shape.scale));
        Ok(PreNormBlock {
            norms: [norm(names.norms[0])?, norm(names.norms[1])?],
            attention: SelfAttention {
                query: qkv(names.qkv[0])?,
                key: qkv(names.qkv[1])?,
                value: qkv(names.qkv[2])?,
                output: linear(names.o, size, size, true)?,
                heads: shape.heads,
                dropout: shape.attention_dropout,
            },
            inner: names
                .inner
                .iter()
                .map(|part| linear(part, size, inner, true))
                .collect::<Result<_>>()?,
            outer: linear(names.outer, inner, size, true)?,
            scales: match names.scales {
                Some([first, second]) => Some([scale(first)?, scale(second)?]),
                None => None,
            },
            activation: shape.activation,
            dropout: shape.dropout,
        })
    }

    /// `mask` as [`SelfAttention::forward`] takes it.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let attended = self.attention.forward(&self.norms[0].forward(hidden)?, mask, train)?;
        let hidden = hidden.f_add(&self.added(attended, 0, train)?)?;
        let normed = self.norms[1].forward(&hidden)?;
        let inner = self.activation.apply(&self.inner[0].forward(&normed)?)?;
        let inner = match self.inner.get(1) {
            Some(up) => inner.f_mul(&up.forward(&normed)?)?,
            None => inner,
        };
        Ok(hidden.f_add(&self.added(self.outer.forward(&inner)?, 1, train)?)?)
    }

    fn added(&self, x: Tensor, branch: usize, train: bool) -> Result<Tensor> {
        let x = match &self.scales {
            Some(scales) => x.f_mul(&scales[branch])?,
            None => x,
        };
        Ok(x.f_dropout(self.dropout, train)?)
    }
}
