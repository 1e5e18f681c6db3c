//! Files that are there whole or not at all.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes a file so that readers see the old one or the new one.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let place = || format!("cannot write '{}'", path.display());
    let dir = path.parent().with_context(place)?;
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(place)?;
    file.write_all(bytes).with_context(place)?;
    file.persist(path).with_context(place)?;
    Ok(())
}
