//! The eyes of a model of images and texts: its image processor, and the tokens that stand for pictures.

use anyhow::{ensure, Context, Result};
use ln_tuning::pretrained::ModelFiles;
use tch::Tensor;
use tokenizers::Tokenizer;

use super::image_tokens::ImageTokens;
pub use super::image_tokens::{model_types, Grid};
use super::pictures::Picture;
use crate::pictures::Processor;
use crate::text::chat::ChatTemplate;
use crate::text::files::TextFiles;

/// The prompts that llava-1.5 has learned from.
const VICUNA: &str = include_str!("vicuna_v1.jinja");

pub struct Vision {
    pub tokens: ImageTokens,
    processor: Processor,
    llava: bool,
}

impl Vision {
    /// `None` for a model that takes text alone.
    pub fn open(
        files: &ModelFiles,
        words: &TextFiles,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>> {
        let Some(tokens) = ImageTokens::open(files.config(), words, tokenizer)? else {
            return Ok(None);
        };
        let llava = files.model_type() == Some("llava");
        Ok(Some(Vision { tokens, processor: Processor::open(files)?, llava }))
    }

    /// That of the processor, else of the tokenizer; llava has one of its own.
    pub fn chat_template(&self, words: &TextFiles) -> Result<Option<ChatTemplate>> {
        ChatTemplate::of_processor(words, self.llava.then_some(VICUNA))
    }

    /// The rows and columns that a picture is cut into, from its head.
    ///
    /// # Errors
    /// If it is no picture, or one that would fill the memory.
    pub fn grid(&self, picture: &Picture) -> Result<Grid> {
        let (width, height) = picture.size()?;
        self.processor.grid(height as usize, width as usize)
    }

    /// The same of a picture that was looked at before: its file is read again only if its tokens follow from its size.
    ///
    /// # Errors
    /// As [`grid`](Self::grid).
    pub fn known_grid(&self, picture: &Picture) -> Result<Grid> {
        if self.processor.splits() {
            return self.grid(picture);
        }
        Ok((0, 0))
    }

    /// A picture as the model sees it, in f32: `[tiles, channels, height, width]`, or `[patches, numbers]`. Its tokens are those of this grid.
    pub fn pixels(&self, picture: &Picture, grid: Grid) -> Result<Tensor> {
        let pixels = self.processor.apply(&picture.read()?).with_context(|| picture.name())?;
        ensure!(
            (pixels.rows, pixels.columns) == grid,
            "{}: the picture was changed during the run",
            picture.name()
        );
        Ok(pixels.values)
    }
}
