//! The PEFT directory: `adapter_config.json`, `adapter_model.safetensors` and a model card.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use super::base::{Base, Facts};
use super::card::Card;
use super::keys::{rename, KeyMapping};
use super::layouts::{Fit, Known, Renamed};
use crate::adapter::config::LnTuningConfig;
use crate::adapter::selection::Norms;
use crate::error::{refusal, refuse, Result};
use crate::mixed::BASE;
use crate::pretrained::files::ModelFiles;
use crate::pretrained::json::object;
use crate::pretrained::load::place_of;
use crate::pretrained::Head;
use crate::regular;
use crate::storage::atomic::Contents;
use crate::storage::safetensors;

const CONFIG: &str = "adapter_config.json";
const SAFETENSORS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
const CARD: &str = "README.md";

/// An adapter as saved on disk, readable without a model.
///
/// ```no_run
/// let adapter = ln_tuning::SavedAdapter::open("my-adapter")?;
/// println!("an adapter of {:?}", adapter.config.base_model_name_or_path);
/// for (key, tensor) in &adapter.tensors {
///     println!("{key} {:?} {:?}", tensor.kind(), tensor.size());
/// }
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct SavedAdapter {
    /// The configuration in `adapter_config.json`.
    pub config: LnTuningConfig,
    /// The keys and tensors, on the CPU, sorted by key.
    pub tensors: Vec<(String, Tensor)>,
    /// The `config.json` beside the adapter, which says the labels of its head.
    pub(super) model_config: Option<Value>,
}

/// The directory of an adapter: PEFT writes `default` to the root and any other to a folder of its name.
pub(crate) fn adapter_dir(root: &Path, adapter: &str, default: &str) -> PathBuf {
    if adapter == default {
        root.to_owned()
    } else {
        root.join(adapter)
    }
}

/// The two files of one adapter.
pub(crate) fn adapter_files(
    dir: &Path,
    config: &LnTuningConfig,
    tensors: &[(String, Tensor)],
) -> Result<Contents> {
    Ok(vec![
        (dir.join(SAFETENSORS), safetensors::to_bytes(tensors)?),
        (dir.join(CONFIG), config.to_json().into_bytes()),
    ])
}

/// The model card, with the text of an existing one.
pub(crate) fn card_file(dir: &Path, card: &Card) -> Result<Contents> {
    let path = dir.join(CARD);
    regular::check_replaceable(&path)?;
    // The write reports a plain file in place of the directory.
    let before = if path.exists() { regular::read(&path)? } else { Vec::new() };
    let before = String::from_utf8(before).map_err(|e| {
        refusal!(CorruptFile, "'{}' is not UTF-8 text: move it away", path.display()).caused_by(e)
    })?;
    Ok(vec![(path, card.render(&before).into_bytes())])
}

impl SavedAdapter {
    /// Reads a directory that PEFT or [`save_pretrained`](crate::LnTuningModel::save_pretrained) wrote.
    ///
    /// # Errors
    /// `MissingFile`, `CorruptFile`, `DuplicateKey`, `NonFinite`, `KindMismatch`; `Unsupported` for a pickle; those of
    /// [`LnTuningConfig::from_file`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let there = || {
            let path = dir.join(CONFIG);
            // The bytes alone would be those of before where two saves came in between.
            (regular::identity(&path), regular::read(&path).ok())
        };
        let mut before = there();
        loop {
            let (config, path) = located(dir)?;
            let tensors = safetensors::read(&path);
            // A save in between, by another process, would mix its configuration with tensors of before.
            let after = there();
            if before == after {
                let (tensors, model_config) = (tensors?, model_config(dir)?);
                return Ok(SavedAdapter { config, tensors, model_config });
            }
            before = after;
        }
    }

    /// The same with renamed keys, as with [`LoadOptions::key_mapping`](crate::LoadOptions::key_mapping).
    ///
    /// # Errors
    /// `InvalidPattern`.
    pub fn key_mapping(
        mut self,
        rules: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Result<Self> {
        let rules: Vec<_> = rules.into_iter().map(|(p, r)| (p.into(), r.into())).collect();
        rename(self.tensors.iter_mut().map(|(key, _)| key), &rules)?;
        Ok(self)
    }

    /// The variables of the base model that this adapter is for, without model code, mapped from the files. Those that
    /// only the adapter has are zeros: a new head, where the files are of a model without one.
    ///
    /// # Errors
    /// `MissingKeys` if a part of the head is in neither; those of [`ModelFiles::var_store`].
    pub fn var_store(&self, files: ModelFiles) -> Result<VarStore> {
        let own = self.in_names_of(&files)?;
        let base = Base::of(files, &own.facts())?;
        let vs = base.files.var_store(Device::Cpu, None, |name| !base.is_new(name))?;
        for (name, shape) in &base.new {
            let (path, last) = place_of(&vs.root(), name);
            let _ = path.add(last, Tensor::f_zeros(shape, (base.kind(), Device::Cpu))?, true);
        }
        Ok(vs)
    }

    /// The head of the model that this adapter is for, if the files are of another class or have another number of
    /// labels, and the names of its labels, none for a head without; `None` if it fits the files as they are.
    ///
    /// # Errors
    /// As [`var_store`](Self::var_store).
    pub fn new_head(&self, files: ModelFiles) -> Result<Option<(Head, Vec<String>)>> {
        let own = self.in_names_of(&files)?;
        let former = files.head();
        let base = Base::of(files, &own.facts())?;
        let head = base.files.head();
        if head == former && (base.new.is_empty() || !head.has_labels()) {
            return Ok(None);
        }
        let config = base.config.as_ref().filter(|_| head.has_labels());
        let names = config.and_then(|config| config.get("id2label")?.as_object());
        let label = |id: usize| Some(names?.get(&id.to_string())?.as_str()?.to_owned());
        Ok(Some((head, (0..).map_while(label).collect())))
    }

    /// The same in the names of a model.
    pub(crate) fn renamed(self, Renamed { keys, config }: Renamed) -> Self {
        let tensors = keys.into_iter().zip(self.tensors);
        let mut tensors: Vec<_> = tensors.map(|(key, (_, tensor))| (key, tensor)).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        SavedAdapter { config, tensors, ..self }
    }

    /// The same in the names of a model's files, if it has those of another layout.
    pub(super) fn in_names_of(&self, files: &ModelFiles) -> Result<Self> {
        let tensors =
            self.tensors.iter().map(|(key, tensor)| (key.clone(), tensor.shallow_clone()));
        let (tensors, config) = (tensors.collect(), self.config.clone());
        let copy = SavedAdapter { config, tensors, model_config: self.model_config.clone() };
        let keys: Vec<&str> = self.tensors.iter().map(|(key, _)| key.as_str()).collect();
        Ok(match fit_files(files, &keys, &self.config)? {
            Some(renamed) => copy.renamed(renamed),
            None => copy,
        })
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        let shapes = self.tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.size()));
        let tensors = shapes.collect();
        Facts { config: &self.config, model_config: self.model_config.as_ref(), tensors }
    }
}

/// An adapter in the names of a model's files, if it has those of another layout.
pub(crate) fn fit_files(
    files: &ModelFiles,
    keys: &[&str],
    config: &LnTuningConfig,
) -> Result<Option<Renamed>> {
    let variables = files.variables_with_copies();
    let (model_type, norms) = (files.model_type(), Norms::Peft);
    let known =
        Known { variables: &variables, model_type, norms, of_one_class: false, may_lack: false };
    Ok(match known.fit(keys, config, "default", &KeyMapping::default())? {
        Fit::Renamed(renamed) => Some(renamed),
        Fit::AsItIs | Fit::InPart(..) => None,
    })
}

/// The `config.json` beside an adapter, if there is one.
pub(crate) fn model_config(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join("config.json");
    path.exists().then(|| object(&path)).transpose()
}

/// The configuration in an adapter directory, and the file with the tensors.
pub(crate) fn located(dir: &Path) -> Result<(LnTuningConfig, PathBuf)> {
    let config_path = dir.join(CONFIG);
    if !config_path.exists() {
        let shown = dir.display();
        if dir.is_file() {
            if dir.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
                refuse!(
                    MissingFile,
                    "'{shown}' is a GGUF file, which is a model, expected an adapter: give the directory with its {CONFIG}"
                );
            }
            refuse!(MissingFile, "'{shown}' is a file, expected the directory that it is in");
        }
        let mut below = Vec::new();
        look_below(dir, 0, &mut below);
        below.sort();
        if !below.is_empty() {
            let more = if below.len() > SHOWN { ", …" } else { "" };
            let folders: Vec<_> =
                below.iter().take(SHOWN).map(|dir| format!("'{}'", dir.display())).collect();
            refuse!(
                MissingFile,
                "'{shown}' holds no {CONFIG}: PEFT saves an adapter that is not called `default` in a folder of its \
                 name. Give {}{more}",
                folders.join(" or ")
            );
        }
        let what = if dir.is_dir() { "holds no" } else { "is not a directory with an" };
        refuse!(
            MissingFile,
            "'{shown}' {what} {CONFIG}: give the directory that `save_pretrained` wrote"
        );
    }
    let config = LnTuningConfig::from_file(&config_path)?;
    let path = dir.join(SAFETENSORS);
    if !path.exists() && dir.join(PICKLE).exists() {
        refuse!(
            Unsupported,
            "'{}' is a pickle, which can run code when it is read. Convert it in Python: \
             `safetensors.torch.save_file(torch.load('{PICKLE}', weights_only=True), '{SAFETENSORS}')`",
            dir.join(PICKLE).display()
        );
    }
    Ok((config, path))
}

/// Folders that an error names.
const SHOWN: usize = 4;

/// Finds the folders below that hold adapters: those of names, in the directory of a run perhaps.
fn look_below(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().take(1000) {
        let path = entry.path();
        if depth > 2 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        } else if path.join(CONFIG).exists() {
            found.push(path);
        } else {
            look_below(&path, depth + 1, found);
        }
    }
}

/// Refuses a name that cannot be a key in a file and a folder on disk.
pub(crate) fn check_adapter_name(name: &str) -> Result<()> {
    let why = if name.trim().is_empty() {
        "it is empty"
    } else if name.contains('.') {
        "a '.' separates the parts of a tensor's key"
    } else if name.contains(['/', '\\']) {
        "it would be a path"
    } else if name.chars().any(char::is_control) {
        "it holds control characters"
    } else if name == BASE {
        "in `adapter_names` it stands for the base"
    } else if name.len() > 200 {
        "it is longer than 200 bytes, and file systems end at 255"
    } else {
        return Ok(());
    };
    refuse!(
        InvalidAdapterName,
        "'{name}' cannot name an adapter: {why}. Use letters, digits, '-' and '_'"
    )
}
