//! The files of a model: its configuration, and the tensors with their names and places.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

use super::naming::head::Head;
use super::naming::layout::Layout;
use super::naming::row::below;
use super::naming::ties::settled;
use super::opened::{Opened, WEIGHTS};
use super::tensor_file::{is_parameter, TensorFile};
use crate::error::{refusal, refuse, Error, Result};
use crate::names::natural::natural_cmp;
use crate::quantised::Quantised;
use crate::storage::gguf::GgufFile;
use crate::storage::info::VariableInfo;
use crate::storage::stored::StoredTensors;

/// An opened Hugging Face model directory, or GGUF file: its configuration and the place of each tensor. No tensor is
/// read yet.
///
/// Tensors have the names of the Python model in memory in transformers 5, which PEFT's keys use: a model of the class
/// in `architectures`, or of another class by [`with_head`](Self::with_head). Files with former names
/// (`vit.encoder.layer.0…`, `gamma`, `beta`), or without the base model's prefix, are understood. Buffers that the
/// model computes, tied copies and modules that the class lacks are no variables; [`left_out`](Self::left_out) lists
/// them.
///
/// A GGUF file of llama.cpp is such a model too: its metadata are the [`config`](Self::config), and its tensors have
/// the names and the form of transformers. Those in blocks are read as f32.
///
/// ```no_run
/// use ln_tuning::pretrained::ModelFiles;
/// let files = ModelFiles::open("SmolLM2-135M-Instruct.Q4_1.gguf")?;
/// assert_eq!(files.model_type(), Some("llama"));
/// let norm = files.tensor("model.layers.0.input_layernorm.weight")?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
pub struct ModelFiles {
    dir: PathBuf,
    config: Value,
    /// `generation_config.json` of a GGUF file.
    pub(super) generation: Option<Value>,
    shards: Vec<StoredTensors>,
    layout: Layout,
    /// The module that is the model, where the files are of a larger one.
    module: Option<&'static str>,
    /// All tensors of the files, by their present names, for any head.
    stored: Vec<TensorFile>,
    tensors: Vec<TensorFile>,
    by_name: BTreeMap<String, usize>,
    pub(super) progress: Option<Progress>,
}

/// Called with the bytes loaded and the bytes to load.
pub(crate) struct Progress(pub(super) Box<dyn Fn(u64, u64)>);

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl ModelFiles {
    /// Opens a directory with `config.json` and either `model.safetensors` or shards with
    /// `model.safetensors.index.json`; or a GGUF file, by its own path or as the only one in a directory without
    /// safetensors. Headers are read and checked against the files' lengths.
    ///
    /// Of a GGUF file, everything that changes what the model computes is understood, or it is an error: the
    /// architecture, the metadata below it, each tensor.
    ///
    /// # Errors
    /// `MissingFile` for a missing file, shards of the index included; `Unsupported` if there is only a pickle
    /// (`pytorch_model.bin`); `InvalidConfig` for bad JSON; `CorruptFile` for a file that was cut off, or an index that
    /// lists what the shards lack; `DuplicateKey` if two tensors have one name in memory. For GGUF: those of
    /// [`GgufFile::open`](crate::gguf::GgufFile::open); `Unsupported` for an architecture or metadata that are not
    /// implemented; `UnexpectedKeys` for tensors without a place; `InvalidArgument` for a directory with several files.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let Opened { config, generation, shards, stored } = Opened::at(dir)?;
        let model_type = config.get("model_type").and_then(Value::as_str);
        let class = config.get("architectures").and_then(|names| names.get(0)?.as_str());
        let layout = Layout::of(model_type, class, &names(&stored));
        let (tensors, by_name) = Default::default();
        let (dir, progress) = (dir.to_owned(), None);
        let files = ModelFiles {
            dir,
            config,
            generation,
            shards,
            layout,
            module: None,
            stored,
            tensors,
            by_name,
            progress,
        };
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

    /// The same files as those of one module of the model, which is a model with this configuration.
    #[cfg(feature = "models")]
    pub(crate) fn part(mut self, module: &'static str, config: Value) -> Result<Self> {
        let mut names = names(&self.stored);
        names.retain(|name| below(name, module).is_some());
        let model_type = config.get("model_type").and_then(Value::as_str);
        self.layout = Layout::of(model_type, None, &names);
        (self.module, self.config) = (Some(module), config);
        self.placed()
    }

    /// Gives each tensor its place in the layout.
    fn placed(mut self) -> Result<Self> {
        let place = |tensor: &TensorFile| {
            self.module.is_none_or(|module| below(&tensor.name, module).is_some()).then_some(())?;
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

    /// The directory, or the GGUF file by its own path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        self.shards.iter().find_map(StoredTensors::gguf)
    }

    /// The parsed `config.json`; that of a GGUF file is made of its metadata, as transformers would have it.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The `model_type` of `config.json`, such as `llama`.
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type").and_then(Value::as_str)
    }

    /// Every tensor, in natural order of the names, for [`Selection::new`](crate::Selection::new). A file does not mark
    /// buffers: integers, the statistics of BatchNorm and BART's `final_logits_bias` count as buffers.
    ///
    /// Kinds are those of the file. A GGUF file has one for all: f16 or bf16 if all its matrices are in that, otherwise
    /// f32, as in transformers.
    pub fn variables(&self) -> Vec<VariableInfo> {
        let variable = |tensor: &TensorFile| {
            let kind = tensor.kind().unwrap_or(Kind::Uint8);
            VariableInfo {
                name: tensor.name.clone(),
                shape: tensor.shape(),
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

    /// Reads one tensor to the CPU, in the kind that it has on disk; one in blocks in f32.
    ///
    /// # Errors
    /// `MissingKeys` if there is no tensor of this name; `KindMismatch` for a kind that libtorch lacks; `Io`.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = self.find(name).ok_or_else(|| self.no_tensor(name))?;
        place.read(&self.shards[place.shard], None)
    }

    /// The blocks of a quantised tensor, on the CPU, with its rows in their order in memory; `None` for a tensor that
    /// is not quantised, or not in rows of blocks in memory (the matrices of GPT-2, which are transposed).
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn quantised(&self, name: &str) -> Result<Option<Quantised>> {
        let place = self.find(name).ok_or_else(|| self.no_tensor(name))?;
        place.quantised(&self.shards[place.shard], false)
    }

    fn no_tensor(&self, name: &str) -> Error {
        refusal!(MissingKeys, "there is no tensor '{name}' in '{}'", self.dir.display())
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
        self.gguf().is_none() && self.shards.iter().all(|shard| !shard.path.ends_with(WEIGHTS))
    }

    /// True if this file holds weights.
    pub(crate) fn is_weights(&self, path: &Path) -> bool {
        self.shards.iter().any(|shard| shard.path == path)
    }
}

fn names(tensors: &[TensorFile]) -> Vec<&str> {
    tensors.iter().map(|tensor| tensor.name.as_str()).collect()
}
