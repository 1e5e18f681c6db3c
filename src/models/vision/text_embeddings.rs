//! Texts as sequences in a model that also sees images: tokens and learned positions.

use tch::{Kind, Tensor};

use super::block::BlockShape;
use crate::error::{refuse, Result};
use crate::models::nn::Weights;

#[derive(Debug)]
pub(super) struct TextEmbeddings {
    tokens: Tensor,
    positions: Tensor,
}

impl TextEmbeddings {
    /// For so many tokens and positions.
    pub(super) fn build(
        weights: &Weights,
        (tokens, positions): (i64, i64),
        shape: &BlockShape,
    ) -> Result<Self> {
        let table = |name: &str, count: i64| {
            weights.at(name).tensor("weight", &[count, shape.size], shape.init())
        };
        Ok(TextEmbeddings {
            tokens: table("token_embedding", tokens)?,
            positions: table("position_embedding", positions)?,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.tokens.kind()
    }

    /// Ids `[batch, length]` to `[batch, length, size]`.
    pub(super) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (length, most) = (ids.size2()?.1, self.positions.size()[0]);
        if length > most {
            refuse!(
                ShapeMismatch,
                "the ids have {length} positions, the model {most}: shorten the text"
            );
        }
        let embedded = Tensor::f_embedding(&self.tokens, ids, -1, false, false)?;
        Ok(embedded.f_add(&self.positions.f_narrow(0, 0, length)?)?)
    }
}
