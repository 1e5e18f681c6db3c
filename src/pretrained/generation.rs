//! `generation_config.json`: the default settings of text generation.

use serde_json::Value;

use super::files::ModelFiles;
use super::json::json;
use crate::error::{ErrorKind, Result};

impl ModelFiles {
    /// The parsed `generation_config.json`; `None` if there is no such file. That of a GGUF file has all tokens that
    /// end a text or a turn, if they are several.
    ///
    /// # Errors
    /// `Io`; `InvalidConfig` for bad JSON.
    pub fn generation_config(&self) -> Result<Option<Value>> {
        if self.gguf().is_some() {
            return Ok(self.generation.clone());
        }
        let path = self.dir().join("generation_config.json");
        match json(&path) {
            Err(error) if error.kind() == ErrorKind::MissingFile => Ok(None),
            value => value.map(Some),
        }
    }
}
