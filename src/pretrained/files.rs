//! The files of a model: its configuration, and the tensors with their names and places.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use regex::{Captures, Regex};
use serde_json::{json, Value};
use tch::{Kind, Tensor};

use super::naming::former::Renaming;
use super::naming::head::Head;
use super::naming::layout::Layout;
use super::naming::ties::settled;
use crate::error::{refusal, refuse, Result};
use crate::names::natural::natural_cmp;
use crate::storage::info::{is_float, VariableInfo};
use crate::storage::regular;
use crate::storage::safetensors::kind_of;
use crate::storage::stored::{Stored, StoredTensors};

const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An opened Hugging Face model directory: its configuration and the place of each tensor. No tensor is read yet.
///
/// Tensors have the names of the Python model in memory in transformers 5, which PEFT's keys use: a model of the class
/// in `architectures`, or of another class by [`with_head`](Self::with_head). Files with former names
/// (`vit.encoder.layer.0…`, `gamma`, `beta`), or without the base model's prefix, are understood. Buffers that the
/// model computes, tied copies and modules that the class lacks are no variables; [`left_out`](Self::left_out) lists
/// them.
#[derive(Debug)]
pub struct ModelFiles {
    dir: PathBuf,
    config: Value,
    shards: Vec<StoredTensors>,
    layout: Layout,
    /// All tensors of the files, by their present names, for any head.
    stored: Vec<TensorFile>,
    tensors: Vec<TensorFile>,
    by_name: BTreeMap<String, usize>,
    pub(super) progress: Option<Progress>,
}

impl TensorFile {
    pub(crate) fn kind(&self) -> Option<Kind> {
        kind_of(self.stored.dtype)
    }
}

/// Called with the bytes loaded and the bytes to load.
pub(crate) struct Progress(pub(super) Box<dyn Fn(u64, u64)>);

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// The place of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct TensorFile {
    pub(crate) name: String,
    pub(crate) shard: usize,
    pub(crate) stored: Stored,
}

impl ModelFiles {
    /// Opens a directory with `config.json` and either `model.safetensors` or shards with
    /// `model.safetensors.index.json`. Headers are read and checked against the files' lengths.
    ///
    /// # Errors
    /// `MissingFile` for a missing file, shards of the index included; `Unsupported` if there is only a pickle
    /// (`pytorch_model.bin`); `InvalidConfig` for bad JSON; `CorruptFile` for a file that was cut off, or an index that
    /// lists what the shards lack; `DuplicateKey` if two tensors have one name in memory.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = object(&dir.join("config.json"))?;
        let (paths, index) = shards(dir)?;
        let shards = paths.iter().map(|path| StoredTensors::open(path));
        let shards = shards.collect::<Result<Vec<_>>>()?;
        let model_type = config.get("model_type").and_then(Value::as_str);
        let class = config.get("architectures").and_then(|names| names.get(0)?.as_str());
        if let Some(index) = &index {
            check_index(index, &shards)?;
        }
        let stored = named(&shards, &Renaming::of(model_type)?)?;
        let layout = Layout::of(model_type, class, &names(&stored));
        let (tensors, by_name) = Default::default();
        let dir = dir.to_owned();
        let files =
            ModelFiles { dir, config, shards, layout, stored, tensors, by_name, progress: None };
        files.placed()
    }

    /// The head of the model: that of the first class in `architectures`, or the one given to
    /// [`with_head`](Self::with_head). Without `architectures` it follows from the names of the tensors, if the model
    /// type is known.
    pub fn head(&self) -> Head {
        self.layout.head()
    }

    /// The same files with the names of a model with this head: the base model's prefix is added or removed, and
    /// tensors of other heads are left out, as transformers does when it loads a checkpoint into another class.
    ///
    /// # Errors
    /// `Unsupported` for a head that this model type is not known to have; `DuplicateKey` if two tensors then have one
    /// name.
    pub fn with_head(mut self, head: Head) -> Result<Self> {
        if head == self.head() {
            return Ok(self);
        }
        self.layout = self.layout.with_head(head, &names(&self.stored)).ok_or_else(|| {
            let model_type = self.model_type().unwrap_or("no model_type");
            match &self.layout.heads()[..] {
                [] => refusal!(
                    Unsupported,
                    "the heads of '{model_type}' are not known: keep its head"
                ),
                known => refusal!(
                    Unsupported,
                    "'{model_type}' has no head {head:?}, expected one of {known:?}"
                ),
            }
        })?;
        self.placed()
    }

    /// The keys of all tensors in the files that are no variables of the model: buffers that it computes, tied copies,
    /// other heads.
    pub fn left_out(&self) -> Vec<&str> {
        let used: BTreeSet<&str> =
            self.tensors.iter().map(|tensor| tensor.stored.key.as_str()).collect();
        let keys = self.stored.iter().map(|tensor| tensor.stored.key.as_str());
        keys.filter(|key| !used.contains(key)).collect()
    }

    /// Gives each tensor its place in the layout.
    fn placed(mut self) -> Result<Self> {
        let place = |tensor: &TensorFile| {
            let name = self.layout.place(&tensor.name)?;
            Some(TensorFile { name, ..tensor.clone() })
        };
        let mut tensors: Vec<TensorFile> = self.stored.iter().filter_map(place).collect();
        tensors.sort_by(|a, b| natural_cmp(&a.name, &b.name));
        self.check_names(&tensors)?;
        let by_name: BTreeMap<&str, &TensorFile> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let same = |a: &str, b: &str| {
            let (a, b) = (by_name[a], by_name[b]);
            self.shards[a.shard].is_same(&a.stored, &self.shards[b.shard], &b.stored)
        };
        let alone = self.layout.copies_stand_alone();
        let copies = self.layout.ties(&self.config);
        let copies = settled(&copies, &by_name.keys().copied().collect(), alone, same)?;
        tensors.retain(|tensor| copies.get(&tensor.name) != Some(&None));
        for tensor in &mut tensors {
            if let Some(Some(original)) = copies.get(&tensor.name) {
                tensor.name.clone_from(original);
            }
        }
        tensors.sort_by(|a, b| natural_cmp(&a.name, &b.name));
        let places = tensors.iter().enumerate();
        self.by_name = places.map(|(place, tensor)| (tensor.name.clone(), place)).collect();
        self.tensors = tensors;
        Ok(self)
    }

    fn check_names(&self, tensors: &[TensorFile]) -> Result<()> {
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            refuse!(
                DuplicateKey,
                "two tensors in '{}' are both '{}' in memory, '{}' and '{}': remove one of them",
                self.dir.display(),
                pair[0].name,
                pair[0].stored.key,
                pair[1].stored.key
            );
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The `model_type` of `config.json`, such as `llama`.
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type").and_then(Value::as_str)
    }

    /// Every tensor, in natural order of the names, for [`Selection::new`](crate::Selection::new). A file does not mark
    /// buffers: integers, the statistics of BatchNorm and BART's `final_logits_bias` count as buffers.
    pub fn variables(&self) -> Vec<VariableInfo> {
        let variable = |tensor: &TensorFile| {
            let kind = tensor.kind().unwrap_or(Kind::Uint8);
            VariableInfo {
                name: tensor.name.clone(),
                shape: tensor.stored.shape.clone(),
                kind,
                is_parameter: is_parameter(&tensor.name, kind),
            }
        };
        self.tensors.iter().map(variable).collect()
    }

    /// [`variables`](Self::variables) and the tied copies, such as `lm_head.weight`: an adapter may untie them.
    pub fn variables_with_copies(&self) -> Vec<VariableInfo> {
        let mut all = self.variables();
        for (name, original) in self.copies() {
            let original = all.iter().find(|variable| variable.name == original).cloned();
            all.extend(original.map(|original| VariableInfo { name, ..original }));
        }
        all.sort_by(|a, b| natural_cmp(&a.name, &b.name));
        all
    }

    /// The tied copies that the model has and the files lack, each with its original, by their names in memory.
    pub(crate) fn copies(&self) -> Vec<(String, String)> {
        let mut copies = self.layout.ties(&self.config);
        copies.retain(|(copy, original)| {
            let own = self.layout.place(copy).as_ref() == Some(copy) && self.find(copy).is_none();
            own && self.find(original).is_some()
        });
        copies
    }

    /// Reads one tensor to the CPU, in the kind that it has on disk.
    ///
    /// # Errors
    /// `MissingKeys` if there is no tensor of this name; `KindMismatch` for a kind that libtorch lacks; `Io`.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = self.find(name).ok_or_else(|| {
            refusal!(MissingKeys, "there is no tensor '{name}' in '{}'", self.dir.display())
        })?;
        self.shards[place.shard].read(&place.stored)
    }

    /// Calls `progress` with the bytes loaded and the total, whenever variables are filled from these files. Tensors
    /// that are memory-mapped count as loaded.
    pub fn with_progress(mut self, progress: impl Fn(u64, u64) + 'static) -> Self {
        self.progress = Some(Progress(Box::new(progress)));
        self
    }

    /// The names of tensors for this head.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn shards(&self) -> &[StoredTensors] {
        &self.shards
    }

    pub(crate) fn tensors(&self) -> &[TensorFile] {
        &self.tensors
    }

    pub(crate) fn find(&self, name: &str) -> Option<&TensorFile> {
        self.by_name.get(name).map(|place| &self.tensors[*place])
    }

    /// True for the name of a variable, or of a tied copy.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some() || self.copies().iter().any(|(copy, _)| copy == name)
    }

    /// True if the weights are those that an index lists.
    pub(crate) fn has_index(&self) -> bool {
        self.shards.iter().all(|shard| !shard.path.ends_with(WEIGHTS))
    }

    /// True if this file holds weights.
    pub(crate) fn is_weights(&self, path: &Path) -> bool {
        self.shards.iter().any(|shard| shard.path == path)
    }
}

pub(crate) fn is_parameter(name: &str, kind: Kind) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    is_float(kind) && !["running_mean", "running_var", "final_logits_bias"].contains(&last)
}

pub(crate) fn json(path: &Path) -> Result<Value> {
    let bytes = regular::read(path)?;
    let read = serde_json::from_slice(&bytes).or_else(|e| finite(&bytes).ok_or(e));
    read.map_err(|e| refusal!(InvalidConfig, "'{}' is not JSON", path.display()).caused_by(e))
}

/// The value with Python's `NaN` and `Infinity`, which JSON lacks, as transformers 5 writes them.
fn finite(bytes: &[u8]) -> Option<Value> {
    let words = Regex::new(r#""(?:[^"\\]|\\.)*"|NaN|-?Infinity"#).ok()?;
    let text = std::str::from_utf8(bytes).ok()?;
    let text = words.replace_all(text, |found: &Captures| match &found[0] {
        string if string.starts_with('"') => string.to_owned(),
        number => json!({ "__float__": number }).to_string(),
    });
    serde_json::from_str(&text).ok()
}

/// A configuration.
pub(crate) fn object(path: &Path) -> Result<Value> {
    let config = json(path)?;
    if !config.is_object() {
        refuse!(
            InvalidConfig,
            "'{}' is no JSON object: expected a model's configuration",
            path.display()
        );
    }
    Ok(config)
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
            tensors.extend(parts.map(|(name, stored)| TensorFile { name, shard, stored }));
        }
    }
    Ok(tensors)
}

fn names(tensors: &[TensorFile]) -> Vec<&str> {
    tensors.iter().map(|tensor| tensor.name.as_str()).collect()
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
        let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        if let Some(pickle) = pickle.iter().find(|name| dir.join(name).exists()) {
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
