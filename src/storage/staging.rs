//! Directories that are filled out of sight and then renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::TempDir;

const PREFIX: &str = ".ln-tuning-";
const SUFFIX: &str = ".tmp";

/// Files by their paths in the directory that they are for.
pub(super) type Files<'c> = Vec<(&'c Path, &'c [u8])>;

/// A directory of its own, locked while its process lives and removed when dropped.
pub(crate) struct Staging {
    dir: TempDir,
    _lock: File,
}

impl Staging {
    /// A new one in `parent`.
    pub(crate) fn new_in(parent: &Path) -> io::Result<Self> {
        loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PREFIX).suffix(SUFFIX);
            #[cfg(unix)]
            {
                // The usual mode of directories, less the umask: by default only the owner could read it.
                use std::os::unix::fs::PermissionsExt;
                builder.permissions(fs::Permissions::from_mode(0o777));
            }
            let dir = builder.tempdir_in(parent)?;
            // Before it is locked, another process may take it for a leftover.
            match File::open(dir.path()) {
                Ok(lock) if try_lock(&lock) && dir.path().exists() => {
                    return Ok(Staging { dir, _lock: lock })
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes files below a directory in it, and flushes them to disk.
    pub(super) fn fill(&self, below: &str, files: &Files) -> io::Result<()> {
        for (path, bytes) in files {
            let path = self.path().join(below).join(path);
            let parent = path.parent().unwrap_or(&path);
            fs::create_dir_all(parent)?;
            // A link to the old file would be written through.
            if path.exists() {
                fs::remove_file(&path)?;
            }
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            sync(parent);
        }
        Ok(())
    }

    /// Moves it to `place`, where nothing stands, or an empty directory.
    pub(crate) fn rename(self, place: &Path) -> io::Result<()> {
        fs::rename(self.dir.path(), place)?;
        let _ = self.dir.keep();
        if let Some(parent) = place.parent() {
            sync(parent);
        }
        Ok(())
    }
}

/// True for the name of such a directory.
pub(crate) fn is_staging(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// Removes what killed processes have left. The lock of a process ends with it.
pub(crate) fn clear(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let kind = entry.file_type();
        let is = |wanted: fn(&fs::FileType) -> bool| kind.as_ref().is_ok_and(wanted);
        let (is_dir, is_file) = (is(fs::FileType::is_dir), is(fs::FileType::is_file));
        if !is_staging(&entry.file_name()) || !(is_dir || is_file) {
            continue;
        }
        let path = entry.path();
        if File::open(&path).is_ok_and(|lock| try_lock(&lock)) {
            let _ = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// True if nobody else holds the lock, or the file system has no locks.
pub(crate) fn try_lock(file: &File) -> bool {
    #[cfg(unix)]
    {
        use rustix::fs::{flock, FlockOperation};
        flock(file, FlockOperation::NonBlockingLockExclusive) != Err(rustix::io::Errno::WOULDBLOCK)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        true
    }
}

/// Makes the names in a directory survive a power cut. Not every file system allows it.
pub(crate) fn sync(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}
