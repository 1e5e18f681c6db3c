//! Files that are written completely or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use super::exchange;
use super::mapped::MappedFile;
use super::staging::{self, sync, try_lock, Files, Staging};
use crate::error::{refuse, Error, Result};
use crate::regular::check_replaceable;

/// The files to write: paths and bytes.
pub(crate) type Contents = Vec<(PathBuf, Vec<u8>)>;

/// The longest wait for another process that saves in the same directory.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes all files, at one instant: whenever the process is killed, all of them are the old ones, or all the new ones.
///
/// A new directory is renamed into its place. If one file differs from what is there, that file is replaced; if several
/// do, the directory is exchanged for another one with links to everything else in it. Where the system cannot do that,
/// the configurations (`.json`) go first and come back last, so that no reader takes a mixture for a whole.
///
/// On an error, files and directories are as they were.
///
/// # Errors
/// `Io` or `MissingFile` if the operating system refuses, or another process saves there without end.
pub fn write(contents: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let Some(dir) = common_dir(contents) else { return Ok(()) };
    for (path, _) in contents {
        check_replaceable(path)?;
    }
    let mut made = Vec::new();
    let result = loop {
        match lock(&dir) {
            Ok(Some(_lock)) => {
                staging::clear(&dir);
                staging::clear(&dir.join(".."));
                break replace(&dir, contents);
            }
            Ok(None) => {}
            Err(error) => break Err(error),
        }
        match create(&dir, contents, &mut made) {
            // Another process has made it meanwhile.
            Err(_) if dir.is_dir() => {}
            result => break result,
        }
    };
    if result.is_err() {
        for dir in made.iter().rev() {
            // Fails if another process has put files there meanwhile.
            let _ = fs::remove_dir(dir);
        }
    }
    result
}

/// Writes one file that is too large for memory: whole, at one instant, or not at all. `check` gets the new one at
/// another path before.
///
/// # Errors
/// As [`write`], and those of `fill` and `check`.
pub(crate) fn write_one<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn io::Write) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    check_replaceable(path)?;
    let failed = |e| Error::io("write", path, e);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut made = Vec::new();
    let written = |made: &mut Vec<PathBuf>| -> Result<(), E> {
        make_dir(parent, made)?;
        staging::clear(parent);
        let staging = Staging::new_in(parent).map_err(failed)?;
        let new = staging.path().join("new");
        let mut file = BufWriter::new(File::create(&new).map_err(failed)?);
        fill(&mut file)?;
        file.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)?;
        check(&new)?;
        fs::rename(&new, path).map_err(failed)?;
        sync(parent);
        Ok(())
    };
    let result = written(&mut made);
    if result.is_err() {
        made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
    }
    result
}

/// The directory that all files are in or below.
fn common_dir(contents: &[(PathBuf, Vec<u8>)]) -> Option<PathBuf> {
    let parents = contents.iter().map(|(path, _)| path.parent().unwrap_or(Path::new("")));
    let shorter = |a: &'_ Path, b: &'_ Path| -> PathBuf {
        a.ancestors().find(|above| b.starts_with(above)).unwrap_or(Path::new("")).to_owned()
    };
    let common = parents.map(Path::to_owned).reduce(|a, b| shorter(&a, &b))?;
    Some(if common.as_os_str().is_empty() { PathBuf::from(".") } else { common })
}

/// Locks a directory until the result is dropped, if it can be read; `None` if there is no directory.
fn lock(dir: &Path) -> Result<Option<Option<File>>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let start = Instant::now();
    loop {
        match fs::metadata(dir) {
            Ok(found) if !found.is_dir() => {
                refuse!(
                    Io,
                    "'{}' is a file, expected a directory: choose another place",
                    dir.display()
                )
            }
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::io("write to", dir, e)),
            Ok(_) => {}
        }
        // Without the right to read a directory, files can be written there all the same.
        let Ok(file) = File::open(dir) else { return Ok(Some(None)) };
        if try_lock(&file) {
            if is_at(&file, dir) {
                return Ok(Some(Some(file)));
            }
        } else if start.elapsed() > PATIENCE {
            refuse!(
                Io,
                "another process has been saving in '{}' for {} seconds: choose another directory, or end it",
                dir.display(),
                PATIENCE.as_secs()
            );
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// True if the open directory is still the one at this path.
fn is_at(file: &File, dir: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |found: io::Result<fs::Metadata>| found.ok().map(|m| (m.dev(), m.ino()));
        place(file.metadata()) == place(fs::metadata(dir))
    }
    #[cfg(not(unix))]
    {
        let _ = (file, dir);
        true
    }
}

/// A new directory with all files.
fn create(dir: &Path, contents: &[(PathBuf, Vec<u8>)], made: &mut Vec<PathBuf>) -> Result<()> {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent, made)?;
    let failed = |e| Error::io("write to", dir, e);
    let staging = Staging::new_in(parent).map_err(failed)?;
    staging.fill("", &below(dir, contents.iter())).map_err(failed)?;
    staging.rename(dir).map_err(failed)
}

/// Replaces the files in a directory.
fn replace(dir: &Path, contents: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let is_there = |path: &Path, bytes: &[u8]| {
        let length = fs::metadata(path).map(|found| found.len());
        length.is_ok_and(|length| length == bytes.len() as u64)
            && MappedFile::open(path).is_ok_and(|found| *found == *bytes)
    };
    let changed = below(dir, contents.iter().filter(|(path, bytes)| !is_there(path, bytes)));
    let one_by_one = match &changed[..] {
        [] => return Ok(()),
        [(only, _)] => dir.join(only).parent().is_some_and(Path::is_dir),
        _ => false,
    };
    if one_by_one || exchange::replace(dir, &changed).is_err() {
        in_steps(dir, &changed).map_err(|e| Error::io("write to", dir, e))?;
    }
    Ok(())
}

/// Other systems cannot exchange directories.
#[cfg(not(target_os = "linux"))]
mod exchange {
    pub(super) fn replace(_: &std::path::Path, _: &super::Files) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Replaces one file after the other. No configuration is there while the files do not belong together.
fn in_steps(dir: &Path, files: &Files) -> io::Result<()> {
    let staging = Staging::new_in(dir)?;
    let (new, old) = (staging.path().join("new"), staging.path().join("old"));
    staging.fill("new", files)?;
    let decides = |path: &Path| path.extension().is_some_and(|end| end == "json");
    let mut paths: Vec<&Path> = files.iter().map(|(path, _)| *path).collect();
    paths.sort_by_key(|path| decides(path));
    let mut steps = Vec::new();
    if paths.len() > 1 {
        let there = paths.iter().rev().filter(|path| dir.join(path).exists());
        steps.extend(there.map(|path| (dir.join(path), old.join(path))));
    }
    steps.extend(paths.iter().map(|path| (new.join(path), dir.join(path))));
    let mut made = Vec::new();
    for (done, (from, to)) in steps.iter().enumerate() {
        let parent = to.parent().unwrap_or(dir);
        let moved = make_dir(parent, &mut made).map_err(io::Error::other);
        if let Err(error) = moved.and_then(|()| fs::rename(from, to)) {
            steps[..done].iter().rev().for_each(|(from, to)| drop(fs::rename(to, from)));
            made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
            return Err(error);
        }
    }
    paths.iter().filter_map(|path| dir.join(path).parent().map(sync)).for_each(drop);
    Ok(())
}

/// The files by their paths below the directory.
fn below<'c>(dir: &Path, contents: impl Iterator<Item = &'c (PathBuf, Vec<u8>)>) -> Files<'c> {
    let relative = |path: &'c Path| path.strip_prefix(dir).unwrap_or(path);
    contents.map(|(path, bytes)| (relative(path), &bytes[..])).collect()
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
    match fs::create_dir(dir) {
        // Another process has made it meanwhile.
        Err(e) if !dir.is_dir() => return Err(Error::io("create", dir, e)),
        made_by_us => made.extend(made_by_us.ok().map(|()| dir.to_owned())),
    }
    Ok(())
}
