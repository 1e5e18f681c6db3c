//! Merging an adapter into a model directory, tensor by tensor, without model code.

use std::fs;
use std::path::{Path, PathBuf};

use super::merged::Merged;
use super::merged_gguf;
use super::options::MergeOptions;
use super::peft::base::{Base, Facts};
use super::peft::directory::{fit_files, located, model_config, SavedAdapter};
use super::peft::keys::rename;
use super::peft::layouts::Renamed;
use crate::error::{refuse, Error, Result};
use crate::pretrained::files::ModelFiles;
use crate::pretrained::other_files::OtherFiles;
use crate::storage::safetensors;
use crate::storage::shard::Shard;
use crate::storage::staging::{self, Staging};
use crate::storage::stored::StoredTensors;

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
    /// With a scale, the adapter's tensors that were merged whole, by their keys: those that the base lacks.
    pub unscaled: Vec<String>,
    /// Weights in other forms, adapters and states of training, which were left out: they are those of the base.
    pub left_out: Vec<PathBuf>,
}

/// Writes a model directory with an adapter's weights in place of the base's: the result of PEFT's `merge_and_unload`
/// and `save_pretrained`, bit for bit.
///
/// All other files are copied, all other tensors are copied byte for byte, and each tensor keeps its kind. Weights are
/// copied in pieces, so that memory does not grow with the model. `progress` gets the bytes written and the total.
///
/// If the base is a GGUF file, so is the result: a copy in which the tensors that the adapter trains are its own, and
/// every other byte of the tensors is the base's, quantised blocks included. What it computes is what the base and the
/// adapter compute together, exactly: one in f16 or bf16 becomes f32 where it could not hold the new weights, and a
/// tensor in blocks is refused, as is what would need other tensors or another configuration. The metadata
/// `ln_tuning.adapter`, `ln_tuning.base`, `ln_tuning.tensors` and, if it is not 1, `ln_tuning.scale` say what was done.
///
/// If the adapter has a head that the base lacks, the result is the model with the head: its class, its labels and its
/// tensors, without those of another head. If the adapter has one of two tied tensors, both are written, and
/// `tie_word_embeddings` becomes false.
///
/// # Errors
/// Those of [`ModelFiles::open`], [`SavedAdapter::open`](crate::SavedAdapter::open) and
/// [`Selection::new`](crate::Selection::new); `MissingKeys`, `UnexpectedKeys` or `ShapeMismatch` if the adapter does
/// not fit; `NonFinite` for weights that the model's kind cannot hold; `InvalidArgument` if `out` is in the model
/// directory; `Io`, also if `out` exists and is not empty; `Unsupported` for what a copy of a GGUF file cannot hold
/// exactly. Then no file is left behind.
///
/// ```no_run
/// let report = ln_tuning::merge("Llama-3.2-1B", "my-adapter", "merged", |_, _| ())?;
/// println!("{} tensors replaced, {} bytes written", report.merged.len(), report.bytes);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
pub fn merge(
    base: impl AsRef<Path>,
    adapter: impl AsRef<Path>,
    out: impl AsRef<Path>,
    progress: impl FnMut(u64, u64),
) -> Result<MergeReport> {
    merge_with(base, adapter, out, &MergeOptions::default(), progress)
}

/// [`merge`] with options.
///
/// # Errors
/// As [`merge`]; `InvalidPattern`; `InvalidArgument` for a scale that is not finite.
pub fn merge_with(
    base: impl AsRef<Path>,
    adapter_dir: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &MergeOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<MergeReport> {
    // A link to a directory stays a link.
    let out = &fs::canonicalize(out.as_ref()).unwrap_or_else(|_| out.as_ref().to_owned());
    let base = base.as_ref();
    let files = ModelFiles::open(base)?;
    let (mut config, path) = located(adapter_dir.as_ref())?;
    let model_config = model_config(adapter_dir.as_ref())?;
    let (mut adapter, mut unscaled) = (StoredTensors::open(&path)?, Vec::new());
    // Removed in the end.
    let place = tempfile::tempdir().map_err(|e| Error::io("write to", &std::env::temp_dir(), e))?;
    if options.scale == 1. {
        rename(adapter.tensors.iter_mut().map(|stored| &mut stored.key), &options.key_mapping)?;
    } else {
        let saved = SavedAdapter::open(&adapter_dir)?.key_mapping(options.key_mapping.clone())?;
        let (scaled, whole) = saved.scaled(ModelFiles::open(base)?, options.scale)?;
        let path = place.path().join("scaled.safetensors");
        fs::write(&path, safetensors::to_bytes(&scaled.tensors)?)
            .map_err(|e| Error::io("write", &path, e))?;
        (adapter, unscaled) = (StoredTensors::open(&path)?, whole);
    }
    if files.gguf().is_some() {
        check_new(out)?;
    } else {
        check_out(base, out)?;
    }
    let keys: Vec<&str> = adapter.tensors.iter().map(|stored| stored.key.as_str()).collect();
    if let Some(Renamed { keys, config: own }) = fit_files(&files, &keys, &config)? {
        config = own;
        adapter.tensors.iter_mut().zip(keys).for_each(|(stored, key)| stored.key = key);
    }
    let shapes = adapter.tensors.iter().map(|stored| (stored.key.as_str(), stored.shape.clone()));
    let tensors = shapes.collect();
    let facts = Facts { config: &config, model_config: model_config.as_ref(), tensors };
    let whole = Base::of(files, &facts)?;
    let files = &whole.files;
    let merged = Merged::of(&whole, &config, &adapter)?;
    if let Some(file) = files.gguf() {
        let writer =
            merged_gguf::copy(files, file, &merged, (adapter_dir.as_ref(), options.scale))?;
        let (mut done, total) = (0, writer.len());
        writer.write_with(out, |bytes| {
            done += bytes;
            progress(done, total);
        })?;
        return Ok(MergeReport {
            merged: merged.names(),
            files: 1,
            bytes: total,
            unscaled,
            left_out: vec![],
        });
    }
    let shards = merged.shards()?;
    let OtherFiles { carried: others, left_out } = files.other_files()?;

    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    staging::clear(parent);
    let dir = Staging::new_in(parent).map_err(|e| Error::io("write to", parent, e))?;
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let total = shards.iter().map(Shard::len).sum::<u64>()
        + others.iter().map(|path| size(&base.join(path))).sum::<u64>();
    let mut done = 0;
    for (file, shard) in files.shards().iter().zip(&shards) {
        let name = file.path.file_name().unwrap_or_default();
        shard.write(&dir.path().join(name), |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    let changed = merged.changed_files(&shards);
    for path in &others {
        let (from, to) = (base.join(path), dir.path().join(path));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        }
        match changed.iter().find(|(name, _)| Path::new(name) == path) {
            Some((_, text)) => {
                fs::write(&to, text).map_err(|e| Error::io("write", &to, e))?;
                done += text.len() as u64;
            }
            None => done += fs::copy(&from, &to).map_err(|e| Error::io("copy", &from, e))?,
        }
        progress(done, total.max(done));
    }
    dir.rename(out).map_err(|e| Error::io("create", out, e))?;
    let (merged, files) = (merged.names(), files.shards().len() + others.len());
    Ok(MergeReport { merged, files, bytes: done, unscaled, left_out })
}

/// Refuses a place for a file where something stands.
fn check_new(out: &Path) -> Result<()> {
    if out.as_os_str().as_encoded_bytes().ends_with(b"/") {
        refuse!(
            InvalidArgument,
            "'{}' is the name of a directory, expected that of a new file, since the base is a GGUF file",
            out.display()
        );
    }
    if fs::symlink_metadata(out).is_ok() {
        refuse!(
            Io,
            "'{}' exists, expected the name of a new file, since the base is a GGUF file: choose another name, or remove \
             it",
            out.display()
        );
    }
    Ok(())
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
