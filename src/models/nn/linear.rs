//! A linear layer.

use tch::nn::Init;
use tch::Tensor;

use super::streamed::Matrix;
use super::weight::Weight;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::product::{linear, linear_transposed};

#[derive(Debug)]
pub(in crate::models) struct Linear {
    pub(in crate::models) weight: Weight,
    pub(in crate::models) bias: Option<Tensor>,
    /// The weight is kept as `[in, out]`, as GPT-2 has it.
    transposed: bool,
}

impl Linear {
    /// `weight` `[out, in]`, and `bias` `[out]` if there is one.
    pub(in crate::models) fn build(
        weights: &Weights,
        (from, to): (i64, i64),
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let (weight, transposed) = weights.matrix("weight", [to, from], false, init)?;
        Ok(Linear { weight, bias: bias_of(weights, to, bias)?, transposed })
    }

    /// `weight` `[in, out]`, and `bias` `[out]` if there is one.
    pub(in crate::models) fn build_transposed(
        weights: &Weights,
        (from, to): (i64, i64),
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let (weight, transposed) = weights.matrix("weight", [from, to], true, init)?;
        Ok(Linear { weight, bias: bias_of(weights, to, bias)?, transposed })
    }

    /// The weight, if it comes when it is needed.
    pub(super) fn streamed(&self) -> Option<Matrix> {
        self.weight.streamed()
    }

    pub(in crate::models) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = if self.transposed { linear_transposed } else { linear };
        self.weight.with_values(x.device(), |weight| product(x, weight, self.bias.as_ref()))
    }
}

fn bias_of(weights: &Weights, size: i64, bias: bool) -> Result<Option<Tensor>> {
    bias.then(|| weights.tensor("bias", &[size], Init::Const(0.))).transpose()
}
