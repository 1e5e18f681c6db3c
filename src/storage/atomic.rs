//! Files that are written completely or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::regular::check_replaceable;
use crate::error::{refuse, Error, Result};

/// The files to write: paths and bytes.
pub type Contents = Vec<(PathBuf, Vec<u8>)>;

/// Writes all files: each to a temporary sibling that is flushed to disk, then all are renamed.
///
/// A full disk, missing permissions and directories that cannot be created are found before the first rename, so that
/// the old files stay as they were. Directories created on the way are removed again on failure.
pub fn write(contents: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let mut made = Vec::new();
    let result = prepare(contents, &mut made).and_then(persist);
    if result.is_err() {
        for dir in made.iter().rev() {
            // Fails if another process has put files there meanwhile.
            let _ = fs::remove_dir(dir);
        }
    }
    result
}

fn prepare(
    contents: &[(PathBuf, Vec<u8>)],
    made: &mut Vec<PathBuf>,
) -> Result<Vec<(NamedTempFile, PathBuf)>> {
    let mut ready = Vec::with_capacity(contents.len());
    for (path, bytes) in contents {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_dir(dir, made)?;
        check_replaceable(path)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".ln-tuning-").suffix(".tmp");
        #[cfg(unix)]
        {
            // The usual mode of files, less the umask: by default only the owner could read a temporary file.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let failed = |e| Error::io("write", path, e);
        let mut file = builder.tempfile_in(dir).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        ready.push((file, path.clone()));
    }
    Ok(ready)
}

fn persist(ready: Vec<(NamedTempFile, PathBuf)>) -> Result<()> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for (file, path) in ready {
        file.persist(&path).map_err(|e| Error::io("replace", &path, e.error))?;
        if let Some(dir) = path.parent().filter(|dir| !dirs.iter().any(|d| d == dir)) {
            dirs.push(dir.to_owned());
        }
    }
    // Makes the new names survive a power cut. Not every file system allows it.
    for dir in dirs {
        if let Ok(dir) = File::open(dir) {
            let _ = dir.sync_all();
        }
    }
    Ok(())
}

fn make_dir(dir: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if dir.exists() {
        refuse!(Io, "'{}' is a file, expected a directory: choose another place", dir.display());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_dir(parent, made)?;
    }
    fs::create_dir(dir).map_err(|e| Error::io("create", dir, e))?;
    made.push(dir.to_owned());
    Ok(())
}
