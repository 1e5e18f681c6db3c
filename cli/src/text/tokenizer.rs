//! The tokenizer of a model directory.

use std::path::Path;

use anyhow::{anyhow, Result};
use ln_tuning::regular;
use tokenizers::{Tokenizer, TruncationParams};

/// Without padding, and cutting off as told: what the file says of these is for inference.
pub fn open(model: &Path, truncation: Option<TruncationParams>) -> Result<Tokenizer> {
    let path = model.join("tokenizer.json");
    let read = regular::read(&path).map_err(Into::into).and_then(Tokenizer::from_bytes);
    let mut tokenizer = read.map_err(|error| {
        anyhow!("'{}': {error}. A model directory with a tokenizer.json is needed", path.display())
    })?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(truncation).map_err(|error| anyhow!(error))?;
    Ok(tokenizer)
}
