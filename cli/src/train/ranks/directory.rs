//! Directories of rank 0, for ranks that do not see them.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, Context, Result};
use ln_tuning::regular;
use tempfile::TempDir;

use super::rank::Ranks;

/// A directory, or a copy of it that goes when this does.
pub struct Directory {
    pub path: PathBuf,
    _copy: Option<TempDir>,
}

impl Ranks {
    /// A directory of rank 0, at this path there: elsewhere a copy of the files in it, which need not see the path.
    ///
    /// # Errors
    /// On all ranks, if rank 0 cannot read it.
    pub fn directory(&self, path: &Path) -> Result<Directory> {
        if self.are_one() {
            return Ok(Directory { path: path.to_owned(), _copy: None });
        }
        let read = || -> Result<Vec<(String, Vec<u8>)>> {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    files.push((name, regular::read(&entry.path())?));
                }
            }
            Ok(files)
        };
        let files = if self.is_first() { read() } else { Ok(Vec::new()) };
        let files = files.with_context(|| format!("cannot read '{}'", path.display()));
        let files = self.agree(files)?;
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let names = self.bytes(serde_json::to_vec(&names)?)?;
        let names: Vec<String> = serde_json::from_slice(&names)?;
        if self.is_first() {
            for (_, bytes) in files {
                self.bytes(bytes)?;
            }
            return Ok(Directory { path: path.to_owned(), _copy: None });
        }
        let copy = tempfile::tempdir();
        let mut written = copy.as_ref().map(drop).map_err(|error| anyhow!("{error}"));
        for name in names {
            // All are received, whatever happens to one.
            let bytes = self.bytes(Vec::new())?;
            if let (Ok(()), Ok(copy)) = (&written, &copy) {
                let file = copy.path().join(&name);
                written = std::fs::write(&file, bytes)
                    .with_context(|| format!("cannot write '{}'", file.display()));
            }
        }
        written?;
        let copy = copy?;
        Ok(Directory { path: copy.path().to_owned(), _copy: Some(copy) })
    }
}
