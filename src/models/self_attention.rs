//! Attention of encoders: every position looks at every other, but for padding.

use tch::Tensor;

use super::parts::Linear;
use crate::error::Result;

#[derive(Debug)]
pub(super) struct SelfAttention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) heads: i64,
    /// On the attention while training.
    pub(super) dropout: f64,
}

impl SelfAttention {
    /// Hidden states `[batch, length, size]`; `mask` is true where a position may be looked at, and of a shape that
    /// fits `[batch, heads, length, length]`.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let (batch, length, size) = hidden.size3()?;
        let split = [batch, length, self.heads, size / self.heads];
        let heads = |projection: &Linear| -> Result<Tensor> {
            Ok(projection.forward(hidden)?.f_view(split)?.f_transpose(1, 2)?)
        };
        let attended = Tensor::f_scaled_dot_product_attention(
            &heads(&self.query)?,
            &heads(&self.key)?,
            &heads(&self.value)?,
            mask,
            if train { self.dropout } else { 0. },
            false,
            None,
            false,
        )?;
        self.output.forward(&attended.f_transpose(1, 2)?.f_reshape([batch, length, size])?)
    }
}
