//! A linear layer.

use tch::nn::Init;
use tch::Tensor;

use super::weights::Weights;
use crate::error::Result;
use crate::kernels::product::{linear, linear_transposed};

#[derive(Debug)]
pub(in crate::models) struct Linear {
    pub(in crate::models) weight: Tensor,
    pub(in crate::models) bias: Option<Tensor>,
    /// The weight is `[in, out]`, as GPT-2 has it.
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
        let weight = weights.tensor("weight", &[to, from], init)?;
        Ok(Linear { weight, bias: bias_of(weights, to, bias)?, transposed: false })
    }

    /// `weight` `[in, out]`, and `bias` `[out]` if there is one.
    pub(in crate::models) fn build_transposed(
        weights: &Weights,
        (from, to): (i64, i64),
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let weight = weights.tensor("weight", &[from, to], init)?;
        Ok(Linear { weight, bias: bias_of(weights, to, bias)?, transposed: true })
    }

    pub(in crate::models) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.transposed {
            return linear_transposed(x, &self.weight, self.bias.as_ref());
        }
        linear(x, &self.weight, self.bias.as_ref())
    }
}

fn bias_of(weights: &Weights, size: i64, bias: bool) -> Result<Option<Tensor>> {
    bias.then(|| weights.tensor("bias", &[size], Init::Const(0.))).transpose()
}
