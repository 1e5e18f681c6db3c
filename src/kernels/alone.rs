//! Fused functions and products, each alone, for benchmarks.

use tch::Tensor;

use super::fused;
use super::fused_forms::{Attended, Gate, NormForm};
use super::packed::Packed;
use super::product;
use crate::error::{refusal, Result};

/// The sum of `x` and `added`, and its RMSNorm, or its LayerNorm where there is a bias.
pub fn added_norm(
    x: &Tensor,
    added: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let form = if bias.is_some() { NormForm::Layer } else { NormForm::Rms };
    there(fused::added_norm(x, added, Some(weight), bias, form, 1e-6)?)
}

/// SiLU of `gate` times `up`.
pub fn silu_gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    there(fused::gated(gate, up, Gate::Silu)?)
}

/// Queries and keys `[batch, length, heads, head_dim]`, turned by cosines and signed sines `[length, 1, head_dim]`.
pub fn turned(both: [&Tensor; 2], angles: &(Tensor, Tensor)) -> Result<[Tensor; 2]> {
    there(fused::turned(both, angles, false)?)
}

/// Causal attention of queries `[batch, heads, length, head_dim]`; keys and values may have fewer heads.
pub fn attended(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let how = Attended { mask: None, causal: true, scale, cap: None };
    there(fused::attend(q, k, v, how)?)
}

/// x · weightᵀ + bias.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    product::linear(x, weight, bias)
}

/// x · weight + bias.
pub fn linear_transposed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    product::linear_transposed(x, weight, bias)
}

/// The other orders of one matrix, which a product keeps.
#[derive(Debug, Default)]
pub struct Orders(Packed);

impl Orders {
    /// x · weightᵀ, with the weight in another order.
    pub fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        there(self.0.product(x, weight, None, false)?)
    }
}

fn there<T>(result: Option<T>) -> Result<T> {
    result.ok_or_else(|| refusal!(Unsupported, "no function of this crate computes it here"))
}
