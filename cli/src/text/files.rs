//! Files of a model directory that may be missing.

use std::path::Path;

use anyhow::{Context, Result};
use ln_tuning::{regular, ErrorKind};
use serde_json::Value;

/// `None` where there is no file.
pub fn text(path: &Path) -> Result<Option<String>> {
    match regular::read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::MissingFile => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Null where there is no file.
pub fn json(path: &Path) -> Result<Value> {
    let json = text(path)?.map_or(Ok(Value::Null), |text| serde_json::from_str(&text));
    json.with_context(|| format!("cannot read '{}'", path.display()))
}
