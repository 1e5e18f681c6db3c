//! Fused functions and products, each alone, for benchmarks and for the checks on a GPU. A function gives `None` where
//! libtorch's operators are used.

use tch::{Kind, Tensor};

use super::fused;
pub use super::fused::{added_norm, gated, gated_in_one, gradients, norm, turned};
use super::fused_forms::{Attended, CrossEntropy};
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

/// The cross entropy of `logits` `[rows, classes]` in f32 against `targets` `[rows, 1]`: the largest logit of each row, its
/// share of the softmax and the target's logit, `[rows, 1]`, and the gradient of the logits in `kind`.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    (cap, smoothing, z_loss): (Option<f64>, f64, f64),
    kind: Kind,
) -> Result<Option<[Tensor; 4]>> {
    let column = || Tensor::f_empty(targets.size(), (Kind::Float, logits.device()));
    let columns = [column()?, column()?, column()?];
    let gradient = Tensor::f_empty(logits.size(), (kind, logits.device()))?;
    let into = Some(&gradient);
    let how = CrossEntropy { bias: None, scale: 1., cap, smoothing, z_loss, wanted: true, into };
    let done = fused::cross_entropy(logits, targets, &columns, how)?;
    let [largest, peak, target] = columns;
    Ok(done.then_some([largest, peak, target, gradient]))
}
