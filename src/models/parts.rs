//! What blocks of several models are made of.

use tch::nn::Init;
use tch::Tensor;

use super::weights::Weights;
use crate::error::Result;
use crate::kernels::product::{linear, linear_transposed};

#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    /// The weight is `[in, out]`, as GPT-2 has it.
    transposed: bool,
}

/// LayerNorm (arXiv 1607.06450).
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
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
        Ok(Linear::of(weight, bias))
    }

    pub(super) fn of(weight: Tensor, bias: Option<Tensor>) -> Self {
        Linear { weight, bias, transposed: false }
    }

    /// One whose weight is stored as `[in, out]`.
    pub(super) fn build_transposed(
        weights: &Weights,
        name: &str,
        (from, to): (i64, i64),
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let linear = Self::build(weights, name, (to, from), false, init)?;
        let bias = match bias {
            true => Some(weights.tensor(&format!("{name}.bias"), &[to], Init::Const(0.))?),
            false => None,
        };
        Ok(Linear { bias, transposed: true, ..linear })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.transposed {
            return linear_transposed(x, &self.weight, self.bias.as_ref());
        }
        linear(x, &self.weight, self.bias.as_ref())
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
