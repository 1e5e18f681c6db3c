//! The files of a model as they are found: a directory of transformers, or one GGUF file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::Kind;

use super::gguf::conversion::Conversion;
use super::gguf::{described, Description};
use super::json::{json, object};
use super::naming::former::Renaming;
use super::tensor_file::TensorFile;
use crate::error::{refusal, refuse, Error, Result};
use crate::storage::gguf::BlockType;
use crate::storage::stored::StoredTensors;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The files that are found, and their configuration.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) config: Value,
    /// `generation_config.json` of a GGUF file.
    pub(super) generation: Option<Value>,
    pub(super) shards: Vec<StoredTensors>,
    /// All tensors, by their present names.
    pub(super) stored: Vec<TensorFile>,
}

impl Opened {
    pub(super) fn at(path: &Path) -> Result<Self> {
        match gguf_at(path)? {
            Some(file) => Self::gguf(&file),
            None => Self::directory(path),
        }
    }

    fn directory(dir: &Path) -> Result<Self> {
        refuse_open_clip(dir)?;
        let config = object(&dir.join("config.json"))?;
        let (paths, index) = shards(dir)?;
        let shards = paths.iter().map(|path| StoredTensors::open(path));
        let shards = shards.collect::<Result<Vec<_>>>()?;
        let model_type = config.get("model_type").and_then(Value::as_str);
        if let Some(index) = &index {
            check_index(index, &shards)?;
        }
        let stored = named(&shards, &Renaming::of(model_type)?)?;
        Ok(Opened { config, generation: None, shards, stored })
    }

    fn gguf(path: &Path) -> Result<Self> {
        let shard = StoredTensors::open_gguf(path)?;
        let Some(file) = shard.gguf() else { refuse!(InvalidState, "no GGUF file") };
        let Description { config, generation, tensors } = described(file, &shard.tensors)?;
        let matrices = file.tensors().iter().filter(|tensor| tensor.shape.len() > 1);
        let own_kind = Some(common_kind(matrices.map(|tensor| tensor.block_type)));
        let place = |(name, stored, conversion)| TensorFile {
            name,
            shard: 0,
            stored,
            conversion,
            own_kind,
        };
        let stored = tensors.into_iter().map(place).collect();
        Ok(Opened { config, generation, shards: vec![shard], stored })
    }
}

/// Pickles of weights, which may run code when they are read.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Repositories of open_clip often hold the form of transformers as well, which is the one to use.
fn refuse_open_clip(dir: &Path) -> Result<()> {
    let has = |name: &&str| dir.join(name).exists();
    let own =
        ["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"];
    let weights = [WEIGHTS, INDEX, PICKLES[0], PICKLES[1]];
    let Some(own) = own.iter().find(|name| has(name)) else { return Ok(()) };
    if !has(&"config.json") || !weights.iter().any(has) {
        refuse!(
            Unsupported,
            "'{}' is a checkpoint of open_clip ({own}), which has other names than transformers, and no model_type. Take \
             config.json and {WEIGHTS} of the same model, which most repositories hold beside it. A `VarStore` of your \
             own with open_clip's names (ln_1, ln_pre, …) can be tuned as it is: `LnTuningModel::new` finds its norms",
            dir.display()
        );
    }
    Ok(())
}

/// The kind that all matrices have, or f32: blocks hold more than a half kind can.
fn common_kind(block_types: impl Iterator<Item = BlockType>) -> Kind {
    let mut kinds = block_types.map(|block_type| block_type.kind().unwrap_or(Kind::Float));
    let first = kinds.next().unwrap_or(Kind::Float);
    if kinds.all(|kind| kind == first) && matches!(first, Kind::Half | Kind::BFloat16) {
        first
    } else {
        Kind::Float
    }
}

/// The GGUF file at this path: the path itself, or the only one in a directory without safetensors.
fn gguf_at(path: &Path) -> Result<Option<PathBuf>> {
    let is_gguf =
        |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    if path.is_file() || (is_gguf(path) && !path.is_dir()) {
        return Ok(Some(path.to_owned()));
    }
    if [WEIGHTS, INDEX].iter().any(|name| path.join(name).exists()) || !path.is_dir() {
        return Ok(None);
    }
    let failed = |e| Error::io("read", path, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        if is_gguf(&entry) {
            found.push(entry);
        }
    }
    found.sort();
    if found.len() > 1 {
        let names = found.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy()));
        refuse!(
            InvalidArgument,
            "'{}' holds {} GGUF files, expected one model: give the path of one of them: {}",
            path.display(),
            found.len(),
            names.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(found.pop())
}

/// All tensors by their present names. Of those with one key in several shards it is the last, as in transformers.
fn named(shards: &[StoredTensors], renaming: &Renaming) -> Result<Vec<TensorFile>> {
    let mut last = HashMap::new();
    for (shard, file) in shards.iter().enumerate() {
        last.extend(file.tensors.iter().map(|stored| (stored.key.as_str(), shard)));
    }
    let mut tensors = Vec::new();
    for (shard, file) in shards.iter().enumerate() {
        for stored in file.tensors.iter().filter(|stored| last[stored.key.as_str()] == shard) {
            let names = renaming.apply(&stored.key)?;
            let parts = stored.parts(names.len(), &file.path)?;
            let parts = names.into_iter().zip(parts);
            tensors.extend(parts.map(|(name, stored)| TensorFile {
                name,
                shard,
                stored,
                conversion: Conversion::AsStored,
                own_kind: None,
            }));
        }
    }
    Ok(tensors)
}

type Index = BTreeMap<String, String>;

/// Refuses an index that lists a tensor that no shard has. Where in the shards it is, and what else they have, counts
/// for nothing, as in transformers.
fn check_index(index: &Index, shards: &[StoredTensors]) -> Result<()> {
    let all = shards.iter().flat_map(|shard| &shard.tensors);
    let all: HashSet<&String> = all.map(|stored| &stored.key).collect();
    if let Some((key, file)) = index.iter().find(|(key, _)| !all.contains(key)) {
        refuse!(
            CorruptFile,
            "{INDEX} says that '{key}' is in '{file}', and it is not: copy the shards again"
        );
    }
    Ok(())
}

/// The files with weights, and the index if there is one.
fn shards(dir: &Path) -> Result<(Vec<PathBuf>, Option<Index>)> {
    let single = dir.join(WEIGHTS);
    if single.exists() {
        return Ok((vec![single], None));
    }
    let path = dir.join(INDEX);
    if !path.exists() {
        if let Some(pickle) = PICKLES.iter().find(|name| dir.join(name).exists()) {
            refuse!(
                Unsupported,
                "'{}' has its weights in a pickle ({pickle}), which can run code when it is read. Convert it in \
                 Python: `AutoModel.from_pretrained(dir).save_pretrained(new_dir)`",
                dir.display()
            );
        }
        refuse!(MissingFile, "'{}' holds neither {WEIGHTS} nor {INDEX}", dir.display());
    }
    let value = json(&path)?;
    let map = value.get("weight_map").cloned().unwrap_or(Value::Null);
    let index: Index = serde_json::from_value(map).map_err(|e| {
        refusal!(InvalidConfig, "'{}' has no valid 'weight_map'", path.display()).caused_by(e)
    })?;
    let names: BTreeSet<&String> = index.values().collect();
    let mut shards = Vec::new();
    for name in names {
        // A path could lead out of the directory.
        if name.contains(['/', '\\']) || name.as_str() == ".." {
            refuse!(
                InvalidConfig,
                "'{}' names the shard '{name}', expected a plain file name",
                path.display()
            );
        }
        let shard = dir.join(name);
        if !shard.exists() {
            refuse!(MissingFile, "the shard '{}' of {INDEX} does not exist", shard.display());
        }
        shards.push(shard);
    }
    Ok((shards, Some(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_of_open_clip_is_refused_with_the_cure_unless_it_has_the_form_of_transformers_too(
    ) {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str| std::fs::write(dir.path().join(name), "{}").unwrap();
        add("open_clip_model.safetensors");
        for name in ["open_clip_config.json", "config.json"] {
            add(name);
            let error = Opened::at(dir.path()).unwrap_err().to_string();
            assert!(error.contains("is a checkpoint of open_clip (open_clip_config"), "{error}");
            assert!(error.contains("Take config.json and model.safetensors"), "{error}");
        }
        add(INDEX);
        let error = Opened::at(dir.path()).unwrap_err().to_string();
        assert!(!error.contains("open_clip"), "{error}");
    }
}
