//! `generation_config.json`: the default settings of text generation.

use serde_json::Value;

use super::files::{json, ModelFiles};
use crate::error::{ErrorKind, Result};

impl ModelFiles {
    /// The parsed `generation_config.json`; `None` if there is no such file.
    ///
    /// # Errors
    /// `Io`; `InvalidConfig` for bad JSON.
    pub fn generation_config(&self) -> Result<Option<Value>> {
        let path = self.dir().join("generation_config.json");
        match json(&path) {
            Err(error) if error.kind() == ErrorKind::MissingFile => Ok(None),
            value => value.map(Some),
        }
    }
}
