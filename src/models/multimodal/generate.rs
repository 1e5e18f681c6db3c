//! Texts continued behind texts and images.

use tch::{no_grad, Tensor};

use super::model::ImageTextToText;
use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::models::generation::GenerateOptions;
use crate::models::inputs::Inputs;

impl ImageTextToText {
    /// As [`Decoder::generate`](super::super::Decoder::generate). Images stand in the prompt; an image token that is
    /// generated is a token like another.
    ///
    /// # Errors
    /// As [`Decoder::generate`](super::super::Decoder::generate); `ShapeMismatch` if the number of image tokens is not
    /// that of the images.
    pub fn generate<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        options: &GenerateOptions,
    ) -> Result<Tensor> {
        self.generate_streaming(inputs, options, |_| true)
    }

    /// As [`Decoder::generate_streaming`](super::super::Decoder::generate_streaming).
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_streaming<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        options: &GenerateOptions,
        on_tokens: impl FnMut(&[i64]) -> bool,
    ) -> Result<Tensor> {
        let merged = no_grad(|| self.merged(&inputs.into(), &mut Tape::off()))?;
        self.text.generate_streaming(merged.inputs(), options, on_tokens)
    }
}
