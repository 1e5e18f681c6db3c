//! Texts as sequences in a model that also sees images: tokens and learned positions.

use tch::{Kind, Tensor};

use super::block::BlockShape;
use crate::error::{refuse, Result};
use crate::models::nn::{Table, Weight, Weights};

#[derive(Debug)]
pub(super) struct TextEmbeddings {
    tokens: Weight,
    positions: Table,
}

impl TextEmbeddings {
    /// For so many tokens and positions.
    pub(super) fn build(
        weights: &Weights,
        (tokens, positions): (i64, i64),
        shape: &BlockShape,
    ) -> Result<Self> {
        let (size, init) = (shape.size, shape.init());
        let table = weights.at("token_embedding").by_row("weight", &[tokens, size], init)?;
        let places = weights.at("position_embedding");
        Ok(TextEmbeddings {
            tokens: Weight::from(table),
            positions: Table::build(&places, "weight", [positions, size], init)?,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.tokens.kind().unwrap_or(Kind::Float)
    }

    /// Ids `[batch, length]` to `[batch, length, size]`.
    pub(super) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let ((batch, length), most) = (ids.size2()?, self.positions.count());
        if length > most {
            refuse!(
                ShapeMismatch,
                "the ids have {length} positions, the model {most}: shorten the text"
            );
        }
        let embedded = self.tokens.lookup(ids, -1)?;
        Ok(embedded.f_add(&self.positions.part(0, length, batch)?)?)
    }
}
