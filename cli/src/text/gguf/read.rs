//! A vocabulary read from the metadata of a GGUF file.

use anyhow::{bail, Context, Result};
use ln_tuning::gguf::{GgufFile, Metadata};

use super::vocabulary::Vocabulary;

/// The names of tokens, and those of their ids in the file.
const SPECIAL: [(&str, &str); 8] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("sep_token", "separator_token_id"),
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// An id for no token.
const NONE: i64 = u32::MAX as i64;

impl Vocabulary {
    /// Without tokens where the file has none.
    pub fn read(file: &GgufFile) -> Result<Self> {
        read(file.metadata()).with_context(|| format!("'{}'", file.path().display()))
    }
}

fn read(metadata: &Metadata) -> Result<Vocabulary> {
    let text =
        |key: &str| -> Result<String> { Ok(metadata.str(key)?.unwrap_or_default().to_owned()) };
    let own = |key: &str| format!("tokenizer.ggml.{key}");
    let mut words = Vocabulary {
        architecture: text("general.architecture")?,
        name: text("general.name")?,
        model: text(&own("model"))?,
        pre: metadata.str(&own("pre"))?.map(str::to_owned),
        tokens: metadata.strings(&own("tokens"))?.unwrap_or_default(),
        types: metadata.integers(&own("token_type"))?.unwrap_or_default(),
        merges: metadata.strings(&own("merges"))?,
        add_bos: metadata.flag(&own("add_bos_token"))?,
        add_eos: metadata.flag(&own("add_eos_token"))?,
        add_space_prefix: metadata.flag(&own("add_space_prefix"))?,
        templates: templates(metadata)?,
        ..Default::default()
    };
    let scores = metadata.numbers(&own("scores"))?.unwrap_or_default();
    words.scores = scores.into_iter().map(|score| score as f32).collect();
    for (place, token) in words.tokens.iter_mut().enumerate().filter(|(_, token)| token.is_empty())
    {
        // As llama.cpp calls it.
        *token = format!("[EMPTY_{place}]");
    }
    let count = words.tokens.len();
    let id = |key: &str| -> Result<Option<usize>> {
        let key = own(key);
        match metadata.integer(&key)?.filter(|id| *id != NONE) {
            Some(id) if count > 0 && !(0..count as i64).contains(&id) => {
                bail!("'{key}' is {id}, and there are {count} tokens: the file is damaged, fetch it again")
            }
            id => Ok(id.map(|id| id as usize)),
        }
    };
    for (name, key) in SPECIAL {
        words.special.extend(id(key)?.map(|id| (name, id)));
    }
    for key in ["eot_token_id", "eom_token_id"] {
        words.ends.extend(id(key)?);
    }
    Ok(words)
}

/// One without a name, and others with names.
fn templates(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    let named = metadata.iter().filter_map(|(key, _)| {
        let rest = key.strip_prefix("tokenizer.chat_template")?;
        let name = if rest.is_empty() { "default" } else { rest.strip_prefix('.')? };
        Some((name.to_owned(), key))
    });
    let read = |(name, key): (String, &str)| -> Result<(String, String)> {
        Ok((name, metadata.str(key)?.unwrap_or_default().to_owned()))
    };
    let mut templates = named.map(read).collect::<Result<Vec<_>>>()?;
    templates.sort_by_key(|(name, _)| name != "default");
    Ok(templates)
}
