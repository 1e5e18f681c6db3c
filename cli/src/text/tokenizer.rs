//! The tokenizer of a model.

use anyhow::{anyhow, Context, Result};
use tokenizers::{Tokenizer, TruncationParams};

use super::files::{TextFiles, TOKENIZER};

/// Without padding, and cutting off as told: what the file says of these is for inference.
pub fn open(model: &TextFiles, truncation: Option<TruncationParams>) -> Result<Tokenizer> {
    let read = model.text(TOKENIZER).and_then(|text| text.context("there is no such file"));
    let read = read.and_then(|text| Tokenizer::from_bytes(text).map_err(|error| anyhow!(error)));
    let mut tokenizer = read.map_err(|error| {
        anyhow!(
            "{}: {error:#}. A model directory with a tokenizer.json is needed, or a GGUF file with a tokenizer",
            model.place(TOKENIZER)
        )
    })?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(truncation).map_err(|error| anyhow!(error))?;
    Ok(tokenizer)
}
