//! The state of an optimiser in a file.

use std::path::Path;

use super::optimizer::Optimizer;
use crate::error::Result;
use crate::storage::{atomic, safetensors};

impl Optimizer {
    /// Writes the [`state_dict`](Self::state_dict) to a safetensors file, whole or not at all.
    ///
    /// # Errors
    /// `Io` or `MissingFile` if the operating system refuses; `UnknownAdapter` if the adapter was deleted.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let bytes = safetensors::to_bytes(&self.state_dict()?)?;
        atomic::write(&[(path.as_ref().to_owned(), bytes)])
    }

    /// Loads what [`save`](Self::save) wrote. On an error, the optimiser does not change.
    ///
    /// # Errors
    /// `MissingFile`, `CorruptFile`, `DuplicateKey` or `NonFinite` for the file, and those of
    /// [`load_state_dict`](Self::load_state_dict).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.load_state_dict(&safetensors::read(path.as_ref())?)
    }
}
