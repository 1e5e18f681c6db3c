//! Norms: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), each in the forms that models have.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::rows::Rows;
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
        if let Some(rows) = Rows::with_own([self.weight.as_ref(), self.bias.as_ref()]) {
            return self.forward_by_row(x, &rows);
        }
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

    /// [`forward`](Self::forward) where rows have weights of their own, which no kernel takes.
    fn forward_by_row(&self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let (shape, kind) = ([self.size], x.f_kind()?);
        let own = |variable: &Option<Tensor>| {
            variable.as_ref().map(|variable| rows.beside(variable, x)).transpose()
        };
        let (weight, bias) = (own(&self.weight)?, own(&self.bias)?);
        // The kernels of the CPU round once, behind the product. On CUDA a copy in f32 costs more than it is worth.
        let low = [Kind::Half, Kind::BFloat16].contains(&kind) && !x.device().is_cuda();
        let wide = low || self.kind == NormKind::RmsFromOne;
        let up = |x: Tensor| if wide { x.f_to_kind(Kind::Float) } else { Ok(x) };
        let (x, bias) = (up(x.shallow_clone())?, bias.map(up).transpose()?);
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
            return Ok(normed.f_to_kind(kind)?.f_to_kind(own_kind)?.f_mul(&weight)?);
        }
        let weight = match self.kind {
            NormKind::RmsFromOne => up(weight)?.f_add_number(1.)?,
            _ => up(weight)?,
        };
        let scaled = match bias {
            Some(bias) => bias.f_addcmul(&normed, &weight)?,
            None => normed.f_mul(&weight)?,
        };
        Ok(scaled.f_to_kind(kind)?)
    }

    /// The sum of `x` and `added`, and its norm.
    pub(super) fn forward_sum(&self, x: &Tensor, added: Tensor) -> Result<(Tensor, Tensor)> {
        let own = Rows::with_own([self.weight.as_ref(), self.bias.as_ref()]).is_some();
        if let Some(form) = self.form(x)?.filter(|_| !own) {
            let (weight, bias) = (self.weight.as_ref(), self.bias.as_ref());
            if let Some(both) = fused::added_norm(x, &added, weight, bias, form, self.eps)? {
                return Ok(both);
            }
        }
        let sum = x.f_add(&added)?;
        // Its memory is free for the norm.
        drop(added);
        let normed = self.forward(&sum)?;
        Ok((sum, normed))
    }

    /// Its form in one function; `None` in f32, where libtorch's operators have the bits of transformers, and rows with
    /// norms of their own have them too: T5, whose scores are not scaled down, makes a last bit a thousand times as
    /// large.
    fn form(&self, x: &Tensor) -> Result<Option<NormForm>> {
        let form = match self.kind {
            NormKind::Rms => NormForm::Rms,
            NormKind::RmsFromOne => NormForm::RmsFromOne,
            NormKind::Layer | NormKind::LayerWithoutBias | NormKind::LayerWithoutWeights => {
                NormForm::Layer
            }
        };
        Ok((x.f_kind()? != Kind::Float).then_some(form))
    }
}
