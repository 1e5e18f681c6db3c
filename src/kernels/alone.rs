//! Fused functions and products, each alone, for benchmarks and for the checks on a GPU. A function gives `None` where
//! libtorch's operators are used.

use tch::Tensor;

use super::fused;
pub use super::fused::{added_norm, gated, gated_in_one, gradients, norm, turned};
use super::fused_forms::Attended;
pub use super::fused_forms::{Gate, NormForm};
#[cfg(fused_cuda)]
pub use super::gpu::compiled;
use super::packed::Packed;
pub use super::product::{linear, linear_transposed};
use crate::error::Result;

/// Causal attention of queries `[batch, heads, length, head_dim]`; keys and values may have fewer heads.
pub fn attended(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    fused::attend(q, k, v, Attended { mask: None, causal: true, scale, cap: None })
}

/// The other orders of one matrix, which a product keeps.
#[derive(Debug, Default)]
pub struct Orders(Packed);

impl Orders {
    /// x · weightᵀ, with the weight in another order.
    pub fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
        self.0.product(x, weight, None, false)
    }
}
