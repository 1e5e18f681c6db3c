//! The loss of next tokens behind texts and images.

use tch::Tensor;

use super::model::ImageTextToText;
use crate::autograd::loss::LinearCrossEntropy;
use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::models::inputs::Inputs;

impl ImageTextToText {
    /// As [`Decoder::loss`](super::super::Decoder::loss). Labels of image tokens are the caller's: with `ignore_index`
    /// they are no targets.
    ///
    /// # Errors
    /// As [`Decoder::loss`](super::super::Decoder::loss); `ShapeMismatch` if the number of image tokens is not that of
    /// the images.
    pub fn loss<'i>(
        &self,
        inputs: impl Into<Inputs<'i>>,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
    ) -> Result<Tensor> {
        self.loss_with(inputs, labels, loss, &mut Tape::off())
    }

    /// [`loss`](Self::loss) with block checkpointing, of the tower and of the language model.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn loss_with<'i, 'm>(
        &'m self,
        inputs: impl Into<Inputs<'i>>,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        Ok(self.losses_with(&[(inputs.into(), labels)], loss, tape)?.swap_remove(0))
    }

    /// As [`Decoder::losses_with`](super::super::Decoder::losses_with).
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn losses_with<'m>(
        &'m self,
        batches: &[(Inputs, &Tensor)],
        loss: &LinearCrossEntropy,
        tape: &mut Tape<'m>,
    ) -> Result<Vec<Tensor>> {
        // The last batch goes first, so that the backward pass comes to the first one first.
        let merged = batches.iter().rev().map(|(inputs, _)| self.merged(inputs, tape));
        let mut merged = merged.collect::<Result<Vec<_>>>()?;
        merged.reverse();
        let batches =
            merged.iter().zip(batches).map(|(merged, (_, labels))| (merged.inputs(), *labels));
        self.text.losses_with(&batches.collect::<Vec<_>>(), loss, tape)
    }
}
