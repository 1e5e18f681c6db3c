//! A linear layer.

use tch::nn::Init;
use tch::Tensor;

use super::rows::Rows;
use super::streamed::Matrix;
use super::weight::Weight;
use super::weights::Weights;
use crate::error::Result;
#[cfg(feature = "kernels")]
use crate::kernels::fused::products;
#[cfg(feature = "kernels")]
use crate::kernels::product::linears;
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

    /// [`build`](Self::build) of a layer that trains: its weight is kept as numbers, whatever is done with others.
    pub(in crate::models) fn build_plain(
        weights: &Weights,
        (from, to): (i64, i64),
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let weight = Weight::from(weights.by_row("weight", &[to, from], init)?);
        Ok(Linear { weight, bias: bias_of(weights, to, bias)?, transposed: false })
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

    /// One of these tensors, `[out, in]` and `[out]`.
    pub(in crate::models) fn of(weight: Tensor, bias: Option<Tensor>) -> Self {
        Linear { weight: Weight::from(weight), bias, transposed: false }
    }

    /// `count` outputs from the one numbered `start` on, of a weight `[out, in]`.
    pub(super) fn forward_part(&self, x: &Tensor, start: i64, count: i64) -> Result<Tensor> {
        let variables = [Some(self.weight.variable()), self.bias.as_ref()];
        if let Some(rows) = Rows::with_own(variables) {
            return rows.grouped(x, variables, |x, adapter| {
                self.of_adapter(&rows, adapter)?.forward_part(x, start, count)
            });
        }
        let part = |x: &Tensor| x.f_narrow(0, start, count);
        let bias = self.bias.as_ref().map(part).transpose()?;
        Linear::of(part(&self.weight.values(x.device())?)?, bias).forward(x)
    }

    fn of_adapter(&self, rows: &Rows, adapter: usize) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| rows.of(bias, adapter)).transpose()?;
        let weight = self.weight.of_adapter(rows, adapter)?;
        Ok(Linear { weight, bias, transposed: self.transposed })
    }

    /// The weight, if it comes when it is needed.
    pub(super) fn streamed(&self) -> Option<Matrix> {
        self.weight.streamed()
    }

    /// [`forward`](Self::forward) of several layers with the same input.
    pub(super) fn forward_all<const N: usize>(
        layers: [&Linear; N],
        x: &Tensor,
    ) -> Result<[Tensor; N]> {
        #[cfg(feature = "kernels")]
        if layers.iter().all(|layer| layer.is_plain()) {
            let parts = layers.map(|layer| (layer.weight.variable(), layer.bias.as_ref()));
            if let Some(all) = linears(x, parts)? {
                return Ok(all);
            }
            // CPUs have ways of their own for each product.
            if x.device().is_cuda() {
                if let Some(all) = products(x, parts)? {
                    return Ok(all);
                }
            }
        }
        let mut all = [(); N].map(|()| Tensor::new());
        for (y, layer) in all.iter_mut().zip(layers) {
            *y = layer.forward(x)?;
        }
        Ok(all)
    }

    /// True if this is a product with the variable as it is, for all rows.
    #[cfg(feature = "kernels")]
    fn is_plain(&self) -> bool {
        let own = Rows::with_own([Some(self.weight.variable()), self.bias.as_ref()]);
        !self.transposed && self.weight.is_plain() && own.is_none()
    }

    pub(in crate::models) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let variables = [Some(self.weight.variable()), self.bias.as_ref()];
        if let Some(rows) = Rows::with_own(variables) {
            return rows
                .grouped(x, variables, |x, adapter| self.of_adapter(&rows, adapter)?.forward(x));
        }
        #[cfg(feature = "kernels")]
        if let Some(y) = self.weight.packed_product(x, self.bias.as_ref(), self.transposed)? {
            return Ok(y);
        }
        let product = if self.transposed { linear_transposed } else { linear };
        self.weight.with_values(x.device(), |weight| product(x, weight, self.bias.as_ref()))
    }
}

fn bias_of(weights: &Weights, size: i64, bias: bool) -> Result<Option<Tensor>> {
    bias.then(|| weights.by_row("bias", &[size], Init::Const(0.))).transpose()
}
