//! Merging an adapter into a model directory, tensor by tensor, without model code.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tch::{no_grad, Kind};

use super::peft::directory::located;
use super::peft::keys::{match_keys, KeyMapping};
use crate::adapter::config::LnTuningConfig;
use crate::adapter::selection::{Norms, SelectedTensor, Selection};
use crate::error::{refuse, Error, ErrorKind, Result};
use crate::pretrained::files::{ModelFiles, TensorFile};
use crate::storage::safetensors::{bytes_of, kind_of};
use crate::storage::stored::{Stored, StoredTensors};

/// The result of [`merge`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeReport {
    /// The tensors that were replaced, by their names in memory.
    pub merged: Vec<String>,
    /// The number of files written.
    pub files: usize,
    /// The number of bytes written.
    pub bytes: u64,
    /// Weights in other formats, which were left out since they hold the unmerged base.
    pub left_out: Vec<PathBuf>,
}

/// Writes a model directory with an adapter's weights in place of the base's: the result of PEFT's `merge_and_unload`
/// and `save_pretrained`, bit for bit.
///
/// All other files are copied, all other tensors are copied byte for byte, and each tensor keeps its kind. Weights are
/// copied in pieces, so that memory does not grow with the model. `progress` gets the bytes written and the total.
///
/// # Errors
/// Those of [`ModelFiles::open`], [`SavedAdapter::open`](crate::SavedAdapter::open) and [`Selection::new`];
/// `MissingKeys`, `UnexpectedKeys` or `ShapeMismatch` if the adapter does not fit; `InvalidArgument` if `out` is in the
/// model directory; `Io`, also if `out` exists and is not empty. Then no file is left behind.
pub fn merge(
    base: impl AsRef<Path>,
    adapter: impl AsRef<Path>,
    out: impl AsRef<Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<MergeReport> {
    let (base, out) = (base.as_ref(), out.as_ref());
    let files = ModelFiles::open(base)?;
    let (config, path) = located(adapter.as_ref())?;
    let adapter = StoredTensors::open(&path)?;
    check_out(base, out)?;
    let replaced = replacements(&files, &config, &adapter)?;

    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    let dir = tempfile::Builder::new().prefix(".ln-tuning-").suffix(".tmp").tempdir_in(parent);
    let dir = dir.map_err(|e| Error::io("write to", parent, e))?;
    let mut others = Vec::new();
    let mut left_out = Vec::new();
    list(&files, Path::new(""), &mut others, &mut left_out)?;
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let total = files.shards().iter().map(|shard| size(&shard.path)).sum::<u64>()
        + others.iter().map(|path| size(&base.join(path))).sum::<u64>();
    let mut done = 0;
    for (index, shard) in files.shards().iter().enumerate() {
        let name = shard.path.file_name().unwrap_or_default();
        let tuned = |name: &str| replaced.get(name).map(|stored| (&adapter, *stored));
        write_shard(&files, index, &dir.path().join(name), tuned, |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    for path in &others {
        let (from, to) = (base.join(path), dir.path().join(path));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        }
        done += fs::copy(&from, &to).map_err(|e| Error::io("copy", &from, e))?;
        progress(done, total);
    }
    make_public(dir.path());
    // Remove `out` if it is an empty directory.
    let _ = fs::remove_dir(out);
    fs::rename(dir.path(), out).map_err(|e| Error::io("create", out, e))?;
    let _ = dir.keep();
    if let Ok(parent) = File::open(parent) {
        let _ = parent.sync_all();
    }
    let mut merged: Vec<String> = replaced.keys().cloned().collect();
    merged.sort_by(|a, b| crate::names::natural::natural_cmp(a, b));
    Ok(MergeReport { merged, files: files.shards().len() + others.len(), bytes: done, left_out })
}

fn check_out(base: &Path, out: &Path) -> Result<()> {
    let shown = out.display();
    match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
        Ok(true) => refuse!(Io, "'{shown}' is not empty: choose another directory, or empty it"),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            refuse!(Io, "'{shown}' is a file, expected a directory: choose another place");
        }
        _ => {}
    }
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| whole(path));
    if whole(out).starts_with(real(base)) || whole(out).starts_with(whole(base)) {
        refuse!(InvalidArgument, "'{shown}' is in the model directory: choose another place");
    }
    Ok(())
}

/// The adapter's tensors by the names of the model's tensors that they replace. All checks come before the first write.
fn replacements<'a>(
    files: &ModelFiles,
    config: &LnTuningConfig,
    adapter: &'a StoredTensors,
) -> Result<HashMap<String, &'a Stored>> {
    let variables = files.variables();
    let selection = Selection::of_saved(&variables, config, files.model_type(), Norms::Peft)?;
    let wanted: Vec<SelectedTensor> = selection.tensors().collect();
    let wanted: Vec<&SelectedTensor> = wanted.iter().collect();
    let keys: Vec<&str> = adapter.tensors.iter().map(|stored| stored.key.as_str()).collect();
    let matched = match_keys(&wanted, &keys, "default", &KeyMapping::default())?;
    for (kind, keys, what) in [
        (ErrorKind::MissingKeys, &matched.missing, "lacks tensors of the modules that it tunes"),
        (ErrorKind::UnexpectedKeys, &matched.unexpected, "holds tensors that belong to no module"),
    ] {
        if let Some(first) = keys.first() {
            let (more, dir) = (keys.len() - 1, files.dir().display());
            let message = format!(
                "the adapter {what} ('{first}' and {more} more): was it made for another model than '{dir}'?"
            );
            return Err(Error::new(kind, message));
        }
    }
    let mut replaced = HashMap::new();
    for (want, found) in wanted.iter().zip(&matched.found) {
        let name = want.variable();
        if let (Some(index), Some(place)) = (found, files.find(&name)) {
            let stored = &adapter.tensors[*index];
            check_fit(stored, place)?;
            adapter.check_finite(stored)?;
            replaced.insert(name, stored);
        }
    }
    Ok(replaced)
}

fn check_fit(stored: &Stored, place: &TensorFile) -> Result<()> {
    let shape = &place.stored.shape;
    if stored.shape != *shape {
        refuse!(
            ShapeMismatch,
            "'{}' has shape {:?}, the model's is {shape:?}: was the adapter made for another size?",
            stored.key,
            stored.shape
        );
    }
    for (name, dtype) in [(&stored.key, stored.dtype), (&place.name, place.stored.dtype)] {
        if kind_of(dtype).is_none() {
            refuse!(KindMismatch, "'{name}' has kind {dtype:?}, which libtorch lacks");
        }
    }
    Ok(())
}

/// The bytes of a tuned tensor in the model's kind.
fn fitted(adapter: &StoredTensors, stored: &Stored, place: &TensorFile) -> Result<Vec<u8>> {
    let kind = kind_of(place.stored.dtype).unwrap_or(Kind::Float);
    no_grad(|| {
        // One copy at a time: the tensor as read is dropped before the bytes are made.
        let tensor = adapter.read(stored)?.f_to_kind(kind)?;
        bytes_of(&tensor)
    })
}

/// Writes one file of weights: a copy with tuned tensors in place of the base's.
fn write_shard<'a>(
    files: &ModelFiles,
    shard: usize,
    to: &Path,
    tuned: impl Fn(&str) -> Option<(&'a StoredTensors, &'a Stored)>,
    mut wrote: impl FnMut(u64),
) -> Result<()> {
    let from = &files.shards()[shard].path;
    let (reading, writing) = (|e| Error::io("read", from, e), |e| Error::io("write", to, e));
    let mut input = File::open(from).map_err(reading)?;
    let mut output = BufWriter::new(File::create(to).map_err(writing)?);
    let mut tensors: Vec<&TensorFile> =
        files.tensors().iter().filter(|tensor| tensor.shard == shard).collect();
    tensors.sort_by_key(|tensor| tensor.stored.start);
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    let end = input.metadata().map_err(reading)?.len();
    let tuned = tensors.iter().filter_map(|place| Some((*place, tuned(&place.name)?)));
    let pieces = tuned.map(|(place, tuned)| (place.stored.start, Some((place, tuned))));
    for (start, piece) in pieces.chain([(end, None)]) {
        input.seek(SeekFrom::Start(at)).map_err(reading)?;
        while at < start {
            let length = buffer.len().min((start - at) as usize);
            input.read_exact(&mut buffer[..length]).map_err(reading)?;
            output.write_all(&buffer[..length]).map_err(writing)?;
            at += length as u64;
            wrote(length as u64);
        }
        if let Some((place, (adapter, stored))) = piece {
            let bytes = fitted(adapter, stored, place)?;
            output.write_all(&bytes).map_err(writing)?;
            at += bytes.len() as u64;
            wrote(bytes.len() as u64);
        }
    }
    let output = output.into_inner().map_err(|e| writing(e.into_error()))?;
    output.sync_all().map_err(writing)
}

/// Lists the files to copy and those to leave out, relative to the model directory.
fn list(
    files: &ModelFiles,
    below: &Path,
    carried: &mut Vec<PathBuf>,
    left_out: &mut Vec<PathBuf>,
) -> Result<()> {
    let dir = files.dir().join(below);
    let failed = |e| Error::io("read", &dir, e);
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let relative = below.join(entry.file_name());
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let weights = [".bin", ".h5", ".msgpack", ".gguf", ".pth", ".pt", ".onnx"];
        if path.is_dir() {
            list(files, &relative, carried, left_out)?;
        } else if weights.iter().any(|end| name.ends_with(end)) || name.ends_with(".bin.index.json")
        {
            left_out.push(relative);
        } else if !files.is_weights(&path) {
            carried.push(relative);
        }
    }
    carried.sort();
    left_out.sort();
    Ok(())
}

/// Makes the directory readable for all, which a temporary directory is not.
fn make_public(dir: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    }
}
