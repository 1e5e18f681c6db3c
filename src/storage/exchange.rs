//! Several files of a directory replaced at one instant: the directory is exchanged for another one.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{chown, MetadataExt};
use std::path::Path;

use rustix::fs::{renameat_with, RenameFlags, CWD};

use super::staging::{is_staging, sync, Files, Staging};

/// The most files beside the new ones; a directory with more is not only for what is saved.
const MOST: usize = 1000;

/// Puts a directory with these files, and links to all others of `dir`, in its place.
///
/// Fails where that cannot be done, with `dir` as it was: no such system call, no hard links, a mount point, another
/// owner, a directory that this process works in.
pub(super) fn replace(dir: &Path, files: &Files) -> io::Result<()> {
    // A link to a directory stays a link.
    let dir = fs::canonicalize(dir)?;
    let parent = dir.parent().ok_or(io::ErrorKind::Unsupported)?;
    if std::env::current_dir().is_ok_and(|at| at.starts_with(&dir)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let staging = Staging::new_in(parent)?;
    link(&dir, staging.path(), &mut 0)?;
    staging.fill("", files)?;
    renameat_with(CWD, staging.path(), CWD, &dir, RenameFlags::EXCHANGE)?;
    sync(parent);
    rescue(staging.path(), &dir, Path::new(""), files)
}

/// Links to everything below `from` in `to`, which gets the owner and the mode of `from`.
fn link(from: &Path, to: &Path, count: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        *count += 1;
        if *count > MOST {
            return Err(io::ErrorKind::Unsupported.into());
        } else if is_staging(&entry.file_name()) {
            continue;
        } else if entry.file_type()?.is_dir() {
            fs::create_dir(&to)?;
            link(&entry.path(), &to, count)?;
        } else {
            fs::hard_link(entry.path(), to)?;
        }
    }
    let like = fs::metadata(from)?;
    chown(to, Some(like.uid()), Some(like.gid()))?;
    fs::set_permissions(to, like.permissions())
}

/// Moves what others made or replaced in the former directory after it was linked.
fn rescue(former: &Path, dir: &Path, below: &Path, files: &Files) -> io::Result<()> {
    let place = |metadata: Metadata| (metadata.dev(), metadata.ino());
    for entry in fs::read_dir(former.join(below))? {
        let entry = entry?;
        let below = below.join(entry.file_name());
        let (from, to) = (former.join(&below), dir.join(&below));
        let there = fs::symlink_metadata(&to);
        if files.iter().any(|(path, _)| *path == below) || is_staging(&entry.file_name()) {
            continue;
        } else if there.as_ref().is_ok_and(Metadata::is_dir) && entry.file_type()?.is_dir() {
            rescue(former, dir, &below, files)?;
        } else if there.map(place).ok() != Some(place(fs::symlink_metadata(&from)?)) {
            fs::rename(from, to)?;
        }
    }
    Ok(())
}
