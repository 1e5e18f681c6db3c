//! The masked LM's decoder that is the word embedding, as checkpoints hold it.

use std::collections::HashSet;

use tch::Tensor;

use super::config::{EncoderConfig, EncoderHead};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

const WORDS: &str = "embeddings.word_embeddings.weight";

/// What a checkpoint holds of a decoder that is the word embedding: nothing, or the same once more.
pub(super) struct TiedDecoder {
    /// The decoder's names, and what they are in memory: nothing where the file has the other name too.
    names: Vec<(String, Option<String>)>,
}

impl TiedDecoder {
    pub(super) fn of(
        config: &EncoderConfig,
        files: &ModelFiles,
        there: &HashSet<String>,
    ) -> Result<Self> {
        let mut tied = TiedDecoder { names: vec![] };
        if !config.tied || config.head != EncoderHead::MaskedLm {
            return Ok(tied);
        }
        let names = config.family.masked_lm;
        let is_words = |name: &&String| config.family.base_name(name) == Some(WORDS);
        let words = there.iter().find(is_words).map_or(WORDS, String::as_str);
        for (part, original) in [("weight", words), ("bias", names.bias)] {
            let copy = format!("{}.{part}", names.decoder);
            if copy == original {
                continue;
            }
            let both = there.contains(&copy) && there.contains(original);
            if both && !same(&files.tensor(&copy)?, &files.tensor(original)?)? {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "'{copy}' is not '{original}', and 'tie_word_embeddings' says that it is: set it to false"
                    ),
                ));
            }
            let alone = !there.contains(original) && part == "bias";
            tied.names.push((copy, alone.then(|| original.to_owned())));
        }
        Ok(tied)
    }

    pub(super) fn renamed(&self, name: &str) -> Option<String> {
        match self.names.iter().find(|(copy, _)| copy == name) {
            Some((_, memory)) => memory.clone(),
            None => Some(name.to_owned()),
        }
    }
}

fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.size() == b.size() && a.f_equal(b)?)
}
