//! The keys of a GGUF file's metadata that are about its architecture, each read or refused.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{json, Map, Value};

use crate::error::{refusal, refuse, Result};
use crate::storage::gguf::{GgufFile, Metadata, MetadataValue};

/// Keys below the architecture that change nothing here.
const INFORMATION: [&str; 3] =
    ["pooling_type", "rope.scaling.finetuned", "classifier.output_labels"];

/// Keys that say nothing if they are 0.
const NOTHING_IF_ZERO: [&str; 7] = [
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_group_count",
    "expert_group_used_count",
    "nextn_predict_layers",
    "leading_dense_block_count",
];

/// Ids of tokens, and their keys in `config.json`.
const TOKENS: [(&str, &str); 3] =
    [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")];

/// The metadata below the architecture. It remembers the keys that were read.
pub(super) struct Fields<'f> {
    pub(super) architecture: String,
    metadata: &'f Metadata,
    path: &'f Path,
    used: RefCell<BTreeSet<String>>,
}

impl<'f> Fields<'f> {
    pub(super) fn of(file: &'f GgufFile) -> Result<Self> {
        let (metadata, path) = (file.metadata(), file.path());
        let kind = metadata.str("general.type")?.unwrap_or("model");
        let vision = metadata.str("general.architecture")? == Some("clip");
        let kind = if kind == "model" && vision { "mmproj" } else { kind };
        if kind != "model" {
            let (about, cure) = match kind {
                "adapter" => (" of llama.cpp, such as LoRA", "give the file of its base model"),
                "mmproj" => (", which sees images", "give the file of the language model"),
                "imatrix" => (", statistics for quantising", "give the file of the model"),
                _ => ("", "give the file of a model"),
            };
            refuse!(
                Unsupported,
                "'{}' holds no model, but '{kind}'{about} ('general.type'): {cure}",
                path.display()
            );
        }
        let architecture = metadata.str("general.architecture")?.ok_or_else(|| {
            refusal!(
                InvalidConfig,
                "'{}' lacks 'general.architecture': it is no model",
                path.display()
            )
        })?;
        let architecture = architecture.to_owned();
        Ok(Fields { architecture, metadata, path, used: RefCell::default() })
    }

    /// The full key.
    fn key(&self, key: &str) -> String {
        let key = format!("{}.{key}", self.architecture);
        self.used.borrow_mut().insert(key.clone());
        key
    }

    /// Counts keys as read.
    pub(super) fn no_use_for(&self, keys: &[&str]) {
        for key in keys {
            self.key(key);
        }
    }

    /// A whole number. Of an array, which has one per block, all must be the same.
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        let key = self.key(key);
        let Some(MetadataValue::Array(_)) = self.metadata.get(&key) else {
            return self.metadata.integer(&key);
        };
        let all = self.metadata.integers(&key)?.unwrap_or_default();
        if all.windows(2).any(|pair| pair[0] != pair[1]) {
            refuse!(
                Unsupported,
                "'{key}' in '{}' is {all:?}, expected one number for all blocks",
                self.path.display()
            );
        }
        Ok(all.first().copied())
    }

    /// A whole number above 0 that must be there.
    pub(super) fn size(&self, key: &str) -> Result<i64> {
        match self.integer(key)? {
            Some(size) if (1..=i64::from(i32::MAX)).contains(&size) => Ok(size),
            found => refuse!(
                InvalidConfig,
                "'{}' in '{}' is {}, expected a whole number from 1 to {}",
                self.key(key),
                self.path.display(),
                found.map_or("missing".to_owned(), |found| found.to_string()),
                i32::MAX
            ),
        }
    }

    /// A whole number above 0, which is `default` where it is not there.
    pub(super) fn size_or(&self, key: &str, default: i64) -> Result<i64> {
        match self.integer(key)? {
            None => Ok(default),
            Some(_) => self.size(key),
        }
    }

    /// A finite number. Those of f32 are read as the decimal that they stand for: 1e-5, not 9.99999974e-6.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let key = self.key(key);
        match self.metadata.number(&key)? {
            Some(number) if !number.is_finite() => refuse!(
                InvalidConfig,
                "'{key}' in '{}' is {number}, expected a finite number",
                self.path.display()
            ),
            Some(number) => Ok(Some(decimal(number))),
            None => Ok(None),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'f str>> {
        self.metadata.str(&self.key(key))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.metadata.flag(&self.key(key))
    }

    /// A window every so many blocks but the last of them, or one flag per block.
    pub(super) fn pattern(&self, key: &str, layers: i64) -> Result<Option<Vec<bool>>> {
        let full = self.key(key);
        let Some(MetadataValue::Array(_)) = self.metadata.get(&full) else {
            let every = self.metadata.integer(&full)?;
            return Ok(every.filter(|every| *every > 0).map(|every| by_number(every, layers)));
        };
        let flags = self.metadata.flags(&full)?.unwrap_or_default();
        if flags.len() as i64 != layers {
            refuse!(
                InvalidConfig,
                "'{full}' in '{}' has {} entries, expected {layers}",
                self.path.display(),
                flags.len()
            );
        }
        Ok(Some(flags))
    }

    /// Refuses a value that says another thing than what is implemented.
    pub(super) fn refuse<T>(
        &self,
        key: &str,
        found: impl std::fmt::Display,
        expected: &str,
    ) -> Result<T> {
        refuse!(
            Unsupported,
            "'{}' in '{}' is {found}, expected {expected}",
            self.key(key),
            self.path.display()
        )
    }

    /// The ids of tokens for `config.json`, as far as they are there.
    pub(super) fn tokens(&self, config: &mut Map<String, Value>) -> Result<()> {
        for (token, key) in TOKENS {
            let id = self.metadata.integer(&format!("tokenizer.ggml.{token}_token_id"))?;
            // Some files say -1 or 2^32 - 1 for none.
            if let Some(id) = id.filter(|id| (0..i64::from(i32::MAX)).contains(id)) {
                config.insert(key.into(), id.into());
            }
        }
        Ok(())
    }

    /// `generation_config.json`: all tokens that end a text or a turn, if they are several.
    pub(super) fn generation(&self) -> Result<Option<Value>> {
        let mut ends: Vec<i64> = Vec::new();
        for token in ["eos", "eot", "eom"] {
            let id = self.metadata.integer(&format!("tokenizer.ggml.{token}_token_id"))?;
            let id = id.filter(|id| (0..i64::from(i32::MAX)).contains(id));
            ends.extend(id.filter(|id| !ends.contains(id)));
        }
        Ok((ends.len() > 1).then(|| json!({ "eos_token_id": ends })))
    }

    /// Counts a window as read that is off, or sees all places that there are.
    fn no_use_for_wide_window(&self) -> Result<()> {
        let key = format!("{}.attention.sliding_window", self.architecture);
        if self.used.borrow().contains(&key) || self.metadata.get(&key).is_none() {
            return Ok(());
        }
        let (window, places) = (self.metadata.integer(&key)?, self.integer("context_length")?);
        if window <= Some(0) || (places.is_some() && window >= places) {
            self.used.borrow_mut().insert(key);
        }
        Ok(())
    }

    /// Refuses a key below the architecture that was not read, for it may change what the model computes.
    pub(super) fn check_all_used(&self) -> Result<()> {
        self.no_use_for(&INFORMATION);
        self.no_use_for_wide_window()?;
        for key in NOTHING_IF_ZERO {
            let full = format!("{}.{key}", self.architecture);
            if self.metadata.get(&full).is_some() && !self.used.borrow().contains(&full) {
                match self.metadata.integer(&full) {
                    Ok(Some(0)) => drop(self.key(key)),
                    _ if key.contains("expert") => refuse!(
                        Unsupported,
                        "'{full}' in '{}': a mixture of experts is not implemented, expected a dense model",
                        self.path.display()
                    ),
                    _ => (),
                }
            }
        }
        let (used, prefix) = (self.used.borrow(), format!("{}.", self.architecture));
        let unknown: Vec<String> = self
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix) && !used.contains(*key))
            .map(|(key, value)| format!("'{key}' ({value:?})"))
            .collect();
        if !unknown.is_empty() {
            refuse!(
                Unsupported,
                "'{}' has metadata that may change what the model computes, and is not understood: {}",
                self.path.display(),
                unknown.join(", ")
            );
        }
        Ok(())
    }
}

/// True for blocks that see a window: all but every n-th.
pub(super) fn by_number(every: i64, layers: i64) -> Vec<bool> {
    (1..=layers).map(|layer| layer % every != 0).collect()
}

fn decimal(number: f64) -> f64 {
    let single = number as f32;
    if f64::from(single) == number {
        single.to_string().parse().unwrap_or(number)
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_f32_is_the_decimal_that_it_stands_for() {
        for number in [1e-5, 1e-6, 0.25, 10_000., 1e7, 1.190_238, 123.5] {
            assert_eq!(decimal(f64::from(number as f32)), number);
        }
        assert_eq!(decimal(1.000_000_001), 1.000_000_001);
    }
}
