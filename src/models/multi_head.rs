//! Attention over several heads, of a sequence to itself or to another, and what it may look at.

use tch::{Device, Kind, Tensor};

use super::parts::Linear;
use crate::error::Result;

/// Keys and values, `[batch, heads, length, head_dim]` each.
pub(super) type KeysValues = (Tensor, Tensor);

#[derive(Debug)]
pub(super) struct MultiHeadAttention {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) heads: i64,
    /// What scores are multiplied with.
    pub(super) scale: f64,
    pub(super) dropout: f64,
}

/// What each query may look at.
pub(super) enum Mask {
    Everything,
    /// Itself and what stands before it.
    Causal,
    /// This is added to the scores, broadcast to `[batch, heads, queries, keys]`.
    Added(Tensor),
}

impl MultiHeadAttention {
    pub(super) fn keys_values(&self, source: &Tensor) -> Result<KeysValues> {
        Ok((self.split(self.k.forward(source)?)?, self.split(self.v.forward(source)?)?))
    }

    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        (keys, values): &KeysValues,
        mask: &Mask,
        train: bool,
    ) -> Result<Tensor> {
        let added = match mask {
            Mask::Added(added) => Some(added),
            Mask::Everything | Mask::Causal => None,
        };
        let attended = Tensor::f_scaled_dot_product_attention(
            &self.split(self.q.forward(hidden)?)?,
            keys,
            values,
            added,
            if train { self.dropout } else { 0. },
            matches!(mask, Mask::Causal),
            self.scale,
            false,
        )?;
        self.o.forward(&attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }

    fn split(&self, x: Tensor) -> Result<Tensor> {
        let (batch, length, wide) = x.size3()?;
        let split = [batch, length, self.heads, wide / self.heads];
        Ok(x.f_reshape(split)?.f_transpose(1, 2)?)
    }
}

impl Mask {
    /// For the last `queries` of `keys` positions if `causal`, else for any. `tokens` `[batch, keys]` is true where
    /// there is a token, and `bias` is added to the scores of what is seen.
    pub(super) fn new(
        (queries, keys): (i64, i64),
        causal: bool,
        tokens: Option<&Tensor>,
        bias: Option<Tensor>,
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        // The last position sees all.
        let causal = causal && queries > 1;
        if causal && queries == keys && tokens.is_none() && bias.is_none() {
            return Ok(Mask::Causal);
        }
        let mut hidden = match tokens {
            Some(tokens) => Some(tokens.f_logical_not()?.f_unsqueeze(1)?.f_unsqueeze(1)?),
            None => None,
        };
        if causal {
            let later = Tensor::f_ones([queries, keys], (Kind::Bool, device))?;
            let later = later.f_triu(1 + keys - queries)?;
            hidden = Some(match hidden {
                Some(padding) => padding.f_logical_or(&later)?,
                None => later.f_unsqueeze(0)?.f_unsqueeze(0)?,
            });
        }
        match (hidden, bias) {
            (None, None) => Ok(Mask::Everything),
            (None, Some(bias)) => Ok(Mask::Added(bias)),
            (Some(hidden), bias) => {
                let bias = match bias {
                    Some(bias) => bias,
                    None => Tensor::f_zeros([1, 1, 1, 1], (kind, device))?,
                };
                Ok(Mask::Added(bias.f_masked_fill(&hidden, lowest(kind))?))
            }
        }
    }
}

/// The lowest finite number: with minus infinity a row that sees nothing would not be a number.
fn lowest(kind: Kind) -> f64 {
    match kind {
        Kind::Half => -65504.,
        Kind::BFloat16 => -3.3895313892515355e38,
        Kind::Double => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}
