//! Texts to token ids.

use std::path::Path;

use anyhow::{anyhow, ensure, Result};
use serde_json::Value;
use tokenizers::{EncodeInput, Tokenizer, TruncationParams};

use crate::text::files::TextFiles;
use crate::text::tokenizer;

pub struct Texts {
    tokenizer: Tokenizer,
    pad: i64,
    /// The model tells the texts of a pair apart.
    types: bool,
    /// The greatest length.
    max_length: usize,
    /// Lengths are multiples of it, or `max_length`.
    multiple: usize,
}

/// Rows of one length.
pub struct TextRows {
    pub ids: Vec<i64>,
    pub mask: Vec<i64>,
    pub types: Option<Vec<i64>>,
    pub length: usize,
    pub padded: bool,
    pub tokens: u64,
}

impl Texts {
    pub fn open(model: &Path, config: &Value, max_length: usize, multiple: usize) -> Result<Self> {
        let truncation = TruncationParams { max_length, ..Default::default() };
        let tokenizer = tokenizer::open(&TextFiles::Directory(model.to_owned()), Some(truncation))?;
        let id = |name: &str| tokenizer.token_to_id(name).map(i64::from);
        let pad = config["pad_token_id"].as_i64().or(id("[PAD]")).or(id("<pad>")).unwrap_or(0);
        let types = config["type_vocab_size"].as_i64().is_some_and(|count| count > 1);
        Ok(Texts { tokenizer, pad, types, max_length, multiple })
    }

    /// A row as the model sees it, special tokens included.
    pub fn seen(&self, texts: (&str, Option<&str>)) -> Result<String> {
        let TextRows { ids, tokens, .. } = self.encode(&[texts])?;
        let ids: Vec<u32> = ids.iter().take(tokens as usize).map(|id| *id as u32).collect();
        self.tokenizer.decode(&ids, false).map_err(|error| anyhow!(error))
    }

    pub fn encode(&self, texts: &[(&str, Option<&str>)]) -> Result<TextRows> {
        let input = |(text, pair): &(&str, Option<&str>)| -> EncodeInput {
            match pair {
                Some(pair) => (text.to_string(), pair.to_string()).into(),
                None => text.to_string().into(),
            }
        };
        let mut encodings = Vec::new();
        for text in texts {
            encodings.push(self.tokenizer.encode(input(text), true).map_err(|e| anyhow!(e))?);
        }
        let length = encodings.iter().map(|encoding| encoding.len()).max().unwrap_or(0);
        ensure!(length > 0, "the tokenizer makes no tokens of these texts");
        let length = length.next_multiple_of(self.multiple).min(self.max_length.max(length));
        let (mut ids, mut mask, mut types) = (Vec::new(), Vec::new(), Vec::new());
        let mut tokens = 0;
        for encoding in &encodings {
            let padding = length - encoding.len();
            let extend = |to: &mut Vec<i64>, values: &[u32], fill: i64| {
                to.extend(values.iter().map(|value| i64::from(*value)));
                to.extend(std::iter::repeat_n(fill, padding));
            };
            extend(&mut ids, encoding.get_ids(), self.pad);
            extend(&mut mask, encoding.get_attention_mask(), 0);
            extend(&mut types, encoding.get_type_ids(), 0);
            tokens += encoding.len() as u64;
        }
        let padded = tokens < ids.len() as u64;
        Ok(TextRows { ids, mask, types: self.types.then_some(types), length, padded, tokens })
    }
}
