//! JSON files of a model directory.

use std::path::Path;

use regex::{Captures, Regex};
use serde_json::{json, Value};

use crate::error::{refusal, refuse, Result};
use crate::regular;

pub(crate) fn json(path: &Path) -> Result<Value> {
    let bytes = regular::read(path)?;
    let read = serde_json::from_slice(&bytes).or_else(|e| finite(&bytes).ok_or(e));
    read.map_err(|e| refusal!(InvalidConfig, "'{}' is not JSON", path.display()).caused_by(e))
}

/// The value with Python's `NaN` and `Infinity`, which JSON lacks, as transformers 5 writes them.
fn finite(bytes: &[u8]) -> Option<Value> {
    let words = Regex::new(r#""(?:[^"\\]|\\.)*"|NaN|-?Infinity"#).ok()?;
    let text = std::str::from_utf8(bytes).ok()?;
    let text = words.replace_all(text, |found: &Captures| match &found[0] {
        string if string.starts_with('"') => string.to_owned(),
        number => json!({ "__float__": number }).to_string(),
    });
    serde_json::from_str(&text).ok()
}

/// A configuration.
pub(crate) fn object(path: &Path) -> Result<Value> {
    let config = json(path)?;
    if !config.is_object() {
        refuse!(
            InvalidConfig,
            "'{}' is no JSON object: expected a model's configuration",
            path.display()
        );
    }
    Ok(config)
}
