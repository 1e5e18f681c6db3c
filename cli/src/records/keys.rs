//! Keys of rows that nobody reads: those that would change what is learned are refused, the others are counted.

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use serde_json::Value;

use super::row::{shown, Row};

/// Keys that change what is learned, and that no task reads.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["image", "images", "image_url", "pixel_values"],
        "pictures beside text are for models of images and texts (llava, llava_next, gemma3, idefics3, smolvlm, \
         qwen2_5_vl, qwen3_vl), and are named by 'images' there. Take such a model, or rows without them",
    ),
    (
        &["audio", "audios", "video", "videos"],
        "sound and films are not learned from beside text. Take rows without them",
    ),
    (
        &["weight", "weights", "loss_weight", "sample_weight"],
        "rows are not weighted. Leave out rows of weight 0, repeat those of more, and take away the key",
    ),
    (
        &[
            "train",
            "training",
            "trainable",
            "loss",
            "learned",
            "masked",
            "mask",
            "loss_mask",
            "completion_mask",
            "assistant_masks",
            "train_detail",
        ],
        "what is learned of a row cannot be said by this key. Leave the row out, or mark its messages ('weight': 0)",
    ),
];

/// The keys of a row that are left, when all that is read was taken away.
///
/// # Errors
/// If one of them changes what is learned, as `more` or the list above says.
pub fn left(row: Row, more: &[(&[&str], &'static str)]) -> Result<Vec<String>> {
    let of = |list: &[(&[&str], &'static str)], key: &str| {
        list.iter().find(|(keys, _)| keys.contains(&key)).map(|(_, words)| *words)
    };
    for (key, value) in &row {
        // A masked message is not learned; `mask` is written for both meanings.
        let weighs = !["masked", "mask"].contains(&key.as_str());
        let words =
            of(more, key).or_else(|| of(REFUSED, key).filter(|_| !(weighs && is_idle(value))));
        if let Some(words) = words.filter(|_| !is_empty(value)) {
            bail!("'{key}' is {}: {words}", shown(value));
        }
    }
    Ok(row.into_iter().filter(|(_, value)| !is_empty(value)).map(|(key, _)| key).collect())
}

/// Nothing is there.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A value that changes nothing: nothing is there, or a weight of 1.
fn is_idle(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() == Some(1.),
        Value::String(text) => ["", "1", "1.0", "true", "True"].contains(&text.as_str()),
        other => is_empty(other),
    }
}

/// Keys with the number of rows that each was found, or missed, in.
#[derive(Default)]
pub struct KeyCounts(BTreeMap<String, usize>);

/// Keys that are counted, and keys that are named.
const COUNTED: usize = 1000;
const NAMED: usize = 12;

impl KeyCounts {
    pub fn add(&mut self, keys: Vec<String>) {
        for key in keys {
            if self.0.len() < COUNTED || self.0.contains_key(&key) {
                *self.0.entry(key).or_default() += 1;
            }
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// The number of rows of a key.
    pub fn rows(&self, key: &str) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }

    /// Words about keys that nobody reads, if there are any.
    pub fn report(&self) -> Option<String> {
        let named = self.0.iter().take(NAMED).map(|(key, rows)| {
            let unit = if *rows == 1 { "row" } else { "rows" };
            format!("'{key}' ({rows} {unit})")
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let more = self.0.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!self.0.is_empty()).then(|| format!("keys that are not read: {named}{more}"))
    }
}

/// The key that is most like a name that is not there.
pub fn near<'k>(name: &str, keys: impl Iterator<Item = &'k String>) -> Option<&'k String> {
    nearest([name], keys).map(|(_, key)| key)
}

/// The name and the key that are most like each other.
pub fn nearest<'n, 'k>(
    names: impl IntoIterator<Item = &'n str>,
    keys: impl Iterator<Item = &'k String>,
) -> Option<(&'n str, &'k String)> {
    let keys: Vec<&String> = keys.take(COUNTED).collect();
    let like =
        |name: &str, key: &str| strsim::jaro_winkler(&key.to_lowercase(), &name.to_lowercase());
    let pairs = names.into_iter().flat_map(|name| keys.iter().map(move |key| (name, *key)));
    let pairs = pairs.map(|(name, key)| (like(name, key), (name, key)));
    let near = pairs.filter(|(like, _)| *like > LIKE);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, pair)| pair)
}

/// Names that are less like each other are different ones.
const LIKE: f64 = 0.85;
