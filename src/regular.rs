//! Regular files: opened without waiting, and read up to a bound.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use crate::error::{refusal, refuse, Error, Result};

/// The largest JSON or text that is read as a whole, in bytes: a tokenizer has some tens of MB.
pub const LIMIT: u64 = 256 << 20;

/// Opens a regular file, or a link to one, for reading.
///
/// A pipe would be waited for, and a device may never end; some devices act on being opened. So the kind of file is
/// looked at before, and again on the open file, which nobody can exchange.
///
/// # Errors
/// `CorruptFile` for anything else, such as a directory; `MissingFile`; `Io`.
pub fn open(path: &Path) -> Result<File> {
    let failed = |e| Error::io("read", path, e);
    check(path, fs::metadata(path).map_err(failed)?.file_type())?;
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.read(true).open(path).map_err(failed)?;
    check(path, file.metadata().map_err(failed)?.file_type())?;
    Ok(file)
}

/// The place and the time of a file, which one that takes its place does not have.
pub(crate) fn identity(path: &Path) -> Option<(u64, SystemTime)> {
    let found = fs::metadata(path).ok()?;
    #[cfg(unix)]
    let place = std::os::unix::fs::MetadataExt::ino(&found);
    #[cfg(not(unix))]
    let place = 0;
    Some((place, found.modified().ok()?))
}

/// The bytes of a regular file of at most [`LIMIT`].
///
/// # Errors
/// As [`open`]; `CorruptFile` for a longer one.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > LIMIT {
        refuse!(
            CorruptFile,
            "'{}' is longer than {} MiB, expected a short text: is it the right file?",
            path.display(),
            LIMIT >> 20
        );
    }
    Ok(bytes)
}

/// The text of a regular file of at most [`LIMIT`].
///
/// # Errors
/// As [`read`]; `InvalidConfig` if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|e| refusal!(InvalidConfig, "'{}' is not UTF-8 text", path.display()).caused_by(e))
}

/// Refuses a place where something stands that is not a regular file.
pub(crate) fn check_replaceable(path: &Path) -> Result<()> {
    match fs::metadata(path).map(|metadata| metadata.file_type()) {
        Ok(kind) if !kind.is_file() => {
            refuse!(
                Io,
                "cannot write '{}': {} is there. Move it away",
                path.display(),
                described(kind)
            )
        }
        _ => Ok(()),
    }
}

/// Refuses what is not a regular file.
pub(crate) fn check(path: &Path, kind: FileType) -> Result<()> {
    if !kind.is_file() {
        refuse!(
            CorruptFile,
            "'{}' is {}, expected a regular file",
            path.display(),
            described(kind)
        );
    }
    Ok(())
}

fn described(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe (FIFO)";
        } else if kind.is_socket() {
            return "a socket";
        } else if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    if kind.is_dir() {
        "a directory"
    } else {
        "no regular file"
    }
}
