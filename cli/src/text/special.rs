//! Special tokens: `tokenizer_config.json` and `config.json`.

use std::path::Path;

use anyhow::{Context, Result};
use ln_tuning::{regular, ErrorKind};
use serde_json::Value;

/// `tokenizer_config.json`; null where there is none.
pub fn tokenizer_config(model: &Path) -> Result<Value> {
    json_of(&model.join("tokenizer_config.json"))
}

/// The text of a special token.
pub fn special(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    Some(token.as_str().or_else(|| token.get("content")?.as_str())?.to_owned())
}

/// `eos_token_id` of `config.json` and of `generation_config.json`: texts end with one of them.
pub fn eos_of_model(model: &Path) -> Result<Vec<i64>> {
    let mut all = Vec::new();
    for file in ["config.json", "generation_config.json"] {
        let config = json_of(&model.join(file))?;
        match config.get("eos_token_id") {
            Some(Value::Array(ids)) => all.extend(ids.iter().filter_map(Value::as_i64)),
            Some(id) => all.extend(id.as_i64()),
            None => {}
        }
    }
    all.dedup();
    Ok(all)
}

fn json_of(path: &Path) -> Result<Value> {
    match regular::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("cannot read '{}'", path.display())),
        Err(error) if error.kind() == ErrorKind::MissingFile => Ok(Value::Null),
        Err(error) => Err(error.into()),
    }
}
