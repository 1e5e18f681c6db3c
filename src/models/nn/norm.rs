//! Norms: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), each in the forms that models have.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::rows::Rows;
use super::weights::Weights;
use crate::error::{Error, Result};
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
            there.then(|| weights.by_row(name, &[size], init)).transpose()
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
        let (weight, bias) = self.beside(x)?;
        let (weight, bias) = (weight.as_ref(), bias.as_ref());
        if let Some(normed) = fused::norm(x, weight, bias, self.form(), self.eps)? {
            return Ok(normed);
        }
        if [weight, bias].into_iter().flatten().any(|own| own.dim() > 1) {
            return self.forward_by_row(x, weight, bias);
        }
        let shape = [self.size];
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
            _ => Ok(x.f_layer_norm(shape, weight, bias, self.eps, true)?),
        }
    }

    /// Weight and bias: those of all rows, `[size]`, or of each part of `x`, `[parts…, 1…, size]`.
    fn beside(&self, x: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let both = [&self.weight, &self.bias];
        let rows = Rows::with_own(both.map(Option::as_ref));
        let own = |variable: &Option<Tensor>| match (variable, &rows) {
            (Some(variable), Some(rows)) => Ok(Some(rows.beside(variable, x)?)),
            (variable, _) => Ok::<_, Error>(variable.as_ref().map(Tensor::shallow_clone)),
        };
        Ok((own(&self.weight)?, own(&self.bias)?))
    }

    /// [`forward`](Self::forward) where rows have weights of their own, which no operator of libtorch takes.
    fn forward_by_row(
        &self,
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (shape, kind) = ([self.size], x.f_kind()?);
        // The kernels of the CPU round once, behind the product. On CUDA a copy in f32 costs more than it is worth.
        let low = [Kind::Half, Kind::BFloat16].contains(&kind) && !x.device().is_cuda();
        let wide = low || self.kind == NormKind::RmsFromOne;
        let up = |x: Tensor| if wide { x.f_to_kind(Kind::Float) } else { Ok(x) };
        let x = up(x.shallow_clone())?;
        let bias = bias.map(|bias| up(bias.shallow_clone())).transpose()?;
        let normed = match self.kind {
            NormKind::Rms | NormKind::RmsFromOne => {
                x.f_rms_norm(shape, None::<&Tensor>, self.eps)?
            }
            _ => x.f_layer_norm(shape, None::<&Tensor>, None::<&Tensor>, self.eps, true)?,
        };
        let Some(weight) = weight else { return Ok(normed.f_to_kind(kind)?) };
        let own_kind = weight.f_kind()?;
        if own_kind != kind && self.kind == NormKind::Rms {
            // T5 in f16 keeps some of its layers in f32.
            return Ok(normed.f_to_kind(kind)?.f_to_kind(own_kind)?.f_mul(weight)?);
        }
        let weight = up(weight.shallow_clone())?;
        let weight = match self.kind {
            NormKind::RmsFromOne => weight.f_add_number(1.)?,
            _ => weight,
        };
        let scaled = match bias {
            Some(bias) => bias.f_addcmul(&normed, &weight)?,
            None => normed.f_mul(&weight)?,
        };
        Ok(scaled.f_to_kind(kind)?)
    }

    /// The sum of `x` and `added`, and its norm.
    pub(super) fn forward_sum(&self, x: &Tensor, added: Tensor) -> Result<(Tensor, Tensor)> {
        let (weight, bias) = self.beside(x)?;
        let (weight, bias, form) = (weight.as_ref(), bias.as_ref(), self.form());
        if let Some(both) = fused::added_norm(x, &added, weight, bias, form, self.eps)? {
            return Ok(both);
        }
        let sum = x.f_add(&added)?;
        // Its memory is free for the norm.
        drop(added);
        let normed = self.forward(&sum)?;
        Ok((sum, normed))
    }

    /// Its form in one function.
    fn form(&self) -> NormForm {
        match self.kind {
            NormKind::Rms => NormForm::Rms,
            NormKind::RmsFromOne => NormForm::RmsFromOne,
            NormKind::Layer | NormKind::LayerWithoutBias | NormKind::LayerWithoutWeights => {
                NormForm::Layer
            }
        }
    }
}
