//! The files of a directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

/// The files of a directory, in order.
pub fn of(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() {
            files.extend(of(&path)?);
        }
    }
    files.sort();
    Ok(files)
}

/// A directory with all that is in it, copied.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    for path in of(from)? {
        let copied = to.join(path.strip_prefix(from)?);
        fs::create_dir_all(copied.parent().context("a file is in a directory")?)?;
        fs::copy(&path, copied)?;
    }
    if !from.is_dir() {
        bail!("'{}' is no directory", from.display());
    }
    Ok(())
}
