//! The words of a GGUF file, in plain values.

use std::collections::HashSet;

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Map, Value};

/// The keys below `tokenizer` in the metadata. Ids are places in `tokens`.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// `general.architecture`
    pub architecture: String,
    /// `general.name`
    pub name: String,
    /// `ggml.model`: the algorithm.
    pub model: String,
    /// `ggml.pre`: the rule that cuts a text before merges.
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    /// Empty, or one for each token.
    pub scores: Vec<f32>,
    /// Empty, or one for each token.
    pub types: Vec<i64>,
    /// Pairs with a space between.
    pub merges: Option<Vec<String>>,
    /// `bos_token` and its like, with their ids.
    pub special: Vec<(&'static str, usize)>,
    /// `ggml.eot_token_id` and its like: ends of a turn.
    pub ends: Vec<usize>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// Chat templates by their names, `default` first.
    pub templates: Vec<(String, String)>,
}

/// The numbers of `ggml.token_type`.
pub const UNKNOWN: i64 = 2;
pub const CONTROL: i64 = 3;
pub const USER_DEFINED: i64 = 4;

impl Vocabulary {
    /// Refuses lists that do not fit together, and ids of no token.
    pub fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        for (name, length) in [("scores", self.scores.len()), ("token_type", self.types.len())] {
            ensure!(
                length == 0 || length == count,
                "'tokenizer.ggml.{name}' has {length} values, expected {count}, one for each token"
            );
        }
        let mut seen = HashSet::new();
        if let Some(twice) = self.tokens.iter().find(|token| !seen.insert(token.as_str())) {
            bail!("'tokenizer.ggml.tokens' holds {twice:?} twice");
        }
        let named = self.special.iter().copied();
        for (name, id) in named.chain(self.ends.iter().map(|id| ("end of a turn", *id))) {
            ensure!(id < count, "the {name} has the id {id}, and there are {count} tokens");
        }
        Ok(())
    }

    /// The id of `bos_token` or its like.
    pub fn id(&self, name: &str) -> Option<usize> {
        self.special.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
    }

    pub fn token_type(&self, id: usize) -> Option<i64> {
        self.types.get(id).copied()
    }

    /// The places of the tokens.
    pub fn ids(&self) -> Map<String, Value> {
        let one = |(id, token): (usize, &String)| (token.clone(), json!(id));
        self.tokens.iter().enumerate().map(one).collect()
    }

    /// The merges as pairs.
    pub fn pairs(&self) -> Option<Result<Vec<(&str, &str)>>> {
        Some(self.merges.as_ref()?.iter().map(|merge| pair(merge)).collect())
    }
}

/// Two parts with a space between. The first may begin with one.
fn pair(merge: &str) -> Result<(&str, &str)> {
    let first = merge.chars().next().map_or(0, char::len_utf8);
    let space = merge[first..].find(' ').map(|space| space + first);
    let space = space.with_context(|| {
        format!(
            "'tokenizer.ggml.merges' holds {merge:?}, expected two parts and a space between them"
        )
    })?;
    Ok((&merge[..space], &merge[space + 1..]))
}
