//! Norms: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), each in the forms that models have.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::weights::Weights;
use crate::error::Result;
use crate::kernels::fused;
use crate::kernels::fused_forms::NormForm;
use crate::kernels::number::WithNumber;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum NormKind {
    Rms,
    /// RMSNorm whose weights count from 1: y · (1 + w).
    RmsFromOne,
    Layer,
    LayerWithoutBias,
    /// LayerNorm without weights.
    LayerWithoutWeights,
}

#[derive(Debug)]
pub(in crate::models) struct Norm {
    kind: NormKind,
    size: i64,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    pub(in crate::models) fn build(
        weights: &Weights,
        kind: NormKind,
        size: i64,
        eps: f64,
    ) -> Result<Self> {
        let init = Init::Const(if kind == NormKind::RmsFromOne { 0. } else { 1. });
        Self::build_with(weights, kind, size, eps, init)
    }

    /// [`build`](Self::build) with other initial weights.
    pub(in crate::models) fn build_with(
        weights: &Weights,
        kind: NormKind,
        size: i64,
        eps: f64,
        init: Init,
    ) -> Result<Self> {
        let tensor = |there: bool, name: &str, init: Init| {
            there.then(|| weights.tensor(name, &[size], init)).transpose()
        };
        Ok(Norm {
            kind,
            size,
            weight: tensor(kind != NormKind::LayerWithoutWeights, "weight", init)?,
            bias: tensor(kind == NormKind::Layer, "bias", Init::Const(0.))?,
            eps,
        })
    }

    pub(in crate::models) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (shape, weight) = ([self.size], self.weight.as_ref());
        if let Some(form) = self.form(x)? {
            if let Some(normed) = fused::norm(x, weight, self.bias.as_ref(), form, self.eps)? {
                return Ok(normed);
            }
        }
        match (self.kind, weight) {
            (NormKind::Rms, Some(weight)) => {
                let kind = weight.f_kind()?;
                if x.f_kind()? == kind {
                    return Ok(x.f_rms_norm(shape, Some(weight), self.eps)?);
                }
                // T5 in f16 keeps some of its layers in f32.
                let normed = x.f_rms_norm(shape, None::<&Tensor>, self.eps)?;
                Ok(normed.f_to_kind(kind)?.f_mul(weight)?)
            }
            (NormKind::RmsFromOne, Some(weight)) => {
                // In f32, 1 + w included, since that sum would be rounded in bf16.
                let weight = weight.f_to_kind(Kind::Float)?.f_add_number(1.)?;
                let x32 = x.f_to_kind(Kind::Float)?;
                let normed = x32.f_rms_norm(shape, Some(&weight), self.eps)?;
                Ok(normed.f_to_kind(x.f_kind()?)?)
            }
            _ => Ok(x.f_layer_norm(shape, weight, self.bias.as_ref(), self.eps, true)?),
        }
    }

    /// The sum of `x` and `added`, and its norm.
    pub(super) fn forward_sum(&self, x: &Tensor, added: &Tensor) -> Result<(Tensor, Tensor)> {
        if let Some(form) = self.form(x)? {
            let (weight, bias) = (self.weight.as_ref(), self.bias.as_ref());
            if let Some(both) = fused::added_norm(x, added, weight, bias, form, self.eps)? {
                return Ok(both);
            }
        }
        let sum = x.f_add(added)?;
        let normed = self.forward(&sum)?;
        Ok((sum, normed))
    }

    /// Its form in one function; `None` for RMSNorm in f32, where libtorch's operators have the bits of transformers:
    /// T5, whose scores are not scaled down, makes a last bit a thousand times as large.
    fn form(&self, x: &Tensor) -> Result<Option<NormForm>> {
        let form = match self.kind {
            NormKind::Rms => NormForm::Rms,
            NormKind::RmsFromOne => NormForm::RmsFromOne,
            NormKind::Layer | NormKind::LayerWithoutBias | NormKind::LayerWithoutWeights => {
                NormForm::Layer
            }
        };
        let exact = form != NormForm::Layer && x.f_kind()? == Kind::Float;
        Ok((!exact).then_some(form))
    }
}
