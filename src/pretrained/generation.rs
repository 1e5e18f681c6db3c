//! `generation_config.json`: how a model's text is continued where nothing else is asked for.

use serde_json::Value;

use super::files::ModelFiles;
use crate::error::{Error, ErrorKind, Result};

impl ModelFiles {
    /// The parsed `generation_config.json`, if it is there.
    ///
    /// # Errors
    /// `Io`; `InvalidConfig` for bad JSON.
    pub fn generation_config(&self) -> Result<Option<Value>> {
        let path = self.dir().join("generation_config.json");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| Error::io("read", &path, e))?,
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            let message = format!("'{}' is not JSON", path.display());
            Error::with_source(ErrorKind::InvalidConfig, message, e)
        })
    }
}
