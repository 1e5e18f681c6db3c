//! An adapter's tensors under PEFT's keys: reading, loading, and the files of `save_pretrained`.

use std::collections::HashMap;
use std::path::Path;

use tch::Tensor;

use super::card::Card;
use super::directory::{adapter_dir, adapter_files, card_file};
use super::keys::{file_key, match_keys, KeyMapping};
use super::mismatch;
use crate::adapter::attachment::Attachment;
use crate::adapter::config::{LnTuningConfig, Modules, TaskType};
use crate::adapter::flat::copy_of;
use crate::adapter::options::{LoadOptions, SaveKind, SaveOptions};
use crate::adapter::scaling::{check_scale, scaled};
use crate::adapter::selection::{Role, SelectedTensor};
use crate::adapter::status::TrainableParameters;
use crate::adapter::weights::{Adapter, Place};
use crate::error::{refuse, Result};
use crate::storage::atomic::Contents;
use crate::storage::finite::{check_cast, check_finite};
use crate::storage::info::is_float;

/// The keys that loading did not use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Keys of the adapter's tensors that are missing in the file.
    pub missing_keys: Vec<String>,
    /// Keys that belong to no selected module.
    pub unexpected_keys: Vec<String>,
    /// Keys of other adapters in the same file, and of copies of base weights.
    pub foreign_keys: Vec<String>,
    /// Keys whose tensors have another shape than the model's, with [`LoadOptions::ignore_mismatched_sizes`].
    pub mismatched_keys: Vec<String>,
}

/// Copies of all tensors, in the order of the selection.
pub(crate) fn tensors(adapter: &Adapter) -> Result<Vec<(String, Tensor)>> {
    let keys = keys(adapter, &KeyMapping::default())?;
    let entries = adapter.entries.iter().zip(keys);
    entries.map(|(entry, key)| Ok((key, copy_of(&adapter.value(entry)?)?))).collect()
}

/// The keys of all tensors, which differ.
fn keys(adapter: &Adapter, mapping: &KeyMapping) -> Result<Vec<String>> {
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut key = |tensor: &SelectedTensor| -> Result<String> {
        let module = mapping.apply(&tensor.module)?;
        if module.split('.').any(str::is_empty) {
            refuse!(
                InvalidArgument,
                "`SaveOptions::key_mapping` renames '{}' to '{module}', expected a path: names with dots between them",
                tensor.module
            );
        }
        let key = file_key(&SelectedTensor { module, ..tensor.clone() });
        if let Some(other) = seen.insert(key.clone(), tensor.variable()) {
            refuse!(
                DuplicateKey,
                "'{other}' and '{}' would both be saved as '{key}': rename them to different paths with \
                 `SaveOptions::key_mapping`",
                tensor.variable()
            );
        }
        Ok(key)
    };
    adapter.entries.iter().map(|entry| key(&entry.tensor)).collect()
}

/// Loads tensors into an adapter. All checks come before the first write.
pub(crate) fn load(
    adapter: &mut Adapter,
    name: &str,
    tensors: &[(String, Tensor)],
    options: &LoadOptions,
) -> Result<LoadReport> {
    let mapping = KeyMapping::new(&options.key_mapping)?;
    let wanted: Vec<&SelectedTensor> = adapter.entries.iter().map(|entry| &entry.tensor).collect();
    let keys: Vec<&str> = tensors.iter().map(|(key, _)| key.as_str()).collect();
    let matched = match_keys(&wanted, &keys, name, &mapping)?;
    let allowed = (options.allow_missing, options.allow_unexpected);
    mismatch::check(&matched, &wanted, &keys, "here", allowed)?;
    let mut report = LoadReport {
        missing_keys: matched.missing,
        unexpected_keys: matched.unexpected,
        foreign_keys: matched.foreign,
        mismatched_keys: Vec::new(),
    };
    let mut writes: Vec<(Place, &Tensor)> = Vec::new();
    let mut kinds = Vec::new();
    for (entry, found) in adapter.entries.iter().zip(&matched.found) {
        let Some((key, tensor)) = found.map(|index| &tensors[index]) else { continue };
        let shape = adapter.value(entry)?.size();
        if tensor.size() != shape {
            if options.ignore_mismatched_sizes {
                report.mismatched_keys.push(key.clone());
                continue;
            }
            refuse!(
                ShapeMismatch,
                "'{key}' has shape {:?}, the model's is {shape:?}: was the adapter made for another size? If its vocabulary \
                 was resized, `merge` makes a model of that size. `LoadOptions::ignore_mismatched_sizes` keeps the \
                 base's values for such tensors",
                tensor.size()
            );
        }
        if tensor.is_sparse() {
            refuse!(KindMismatch, "'{key}' is sparse, expected a dense tensor: call `to_dense`");
        }
        let (kind, expected) = (tensor.f_kind()?, adapter.model_kind(entry)?);
        if is_float(kind) != is_float(expected) {
            refuse!(
                KindMismatch,
                "'{key}' has kind {kind:?}, expected {expected:?} as in the model: save it in that kind"
            );
        }
        writes.push((entry.place, tensor));
        kinds.push((key.as_str(), tensor, expected));
    }
    check_finite(&kinds)?;
    // A tied tensor has several keys, whose values must be equal.
    let mut first: HashMap<Place, &Tensor> = HashMap::with_capacity(writes.len());
    for (place, tensor) in &writes {
        let other = first.insert(*place, tensor);
        if !other.map_or(Ok(true), |other| tensor.f_equal(other))? {
            refuse!(
                TiedTensors,
                "the adapter holds different values for two names of one tied tensor: untie it in the model"
            );
        }
    }
    adapter.set_all(&writes)?;
    Ok(report)
}

/// The files that `save_pretrained` writes.
pub(crate) fn files(
    attachment: &Attachment,
    dir: &Path,
    default: &str,
    options: &SaveOptions,
) -> Result<Contents> {
    let all = || attachment.adapters.keys().cloned().collect();
    let default = options.at_root.as_deref().unwrap_or(default);
    let names: Vec<String> = options.selected_adapters.clone().unwrap_or_else(all);
    let mapping = KeyMapping::new(&options.key_mapping)?;
    check_scale(options.scale)?;
    let mut contents = Contents::new();
    for name in &names {
        let adapter = attachment.current(name)?;
        let mut tensors = Vec::with_capacity(adapter.entries.len());
        for (entry, key) in adapter.entries.iter().zip(keys(adapter, &mapping)?) {
            let mut value = adapter.value(entry)?;
            if options.scale != 1. {
                let kind = value.f_kind()?;
                let base = attachment.base_data(adapter.variable(entry.place))?;
                let sum = scaled(&base, &value, options.scale)?;
                check_finite(&[(&key, &sum, kind)])?;
                value = sum.f_to_kind(kind)?;
            }
            let value = match options.kind {
                SaveKind::Master => value,
                SaveKind::Model => {
                    let cast = value.f_to_kind(adapter.model_kind(entry)?)?;
                    check_cast(&format!("'{}'", entry.tensor.variable()), &value, &cast)?;
                    cast
                }
            };
            tensors.push((key, value));
        }
        let config = exported(attachment, adapter, &mapping, options)?;
        contents.extend(adapter_files(&adapter_dir(dir, name, default), &config, &tensors)?);
    }
    let shown = names.iter().find(|name| *name == default).or(names.first());
    if let Some(name) = shown {
        let config = &attachment.adapter(name)?.config;
        let card = Card {
            base_model: config.base_model_name_or_path.clone(),
            causal_lm: config.task_type == Some(TaskType::CausalLm),
            summary: TrainableParameters::of_adapter(attachment, name)?.to_string(),
        };
        contents.extend(card_file(dir, &card)?);
    }
    Ok(contents)
}

/// The configuration in the form that PEFT saves: explicit targets, for inference.
fn exported(
    attachment: &Attachment,
    adapter: &Adapter,
    mapping: &KeyMapping,
    options: &SaveOptions,
) -> Result<LnTuningConfig> {
    let mut config = adapter.selection.export_config(&adapter.config);
    if adapter.selected_among != attachment.variables.len() {
        let infos = attachment.variables.infos()?;
        config = adapter.selection.among(&infos, &config)?.export_config(&config);
    }
    config.inference_mode = true;
    if !options.key_mapping.is_empty() {
        let (mut tuned, mut saved) = (Vec::new(), Vec::new());
        for module in adapter.selection.trained() {
            let path = mapping.apply(&module.path)?;
            match module.role {
                Role::Tuned => tuned.push(regex::escape(&path)),
                Role::Whole => saved.push(path),
            }
        }
        config.target_modules = Some(Modules::Pattern(tuned.join("|")));
        config.exclude_modules = None;
        config.modules_to_save = Some(saved).filter(|saved| !saved.is_empty());
    }
    Ok(config)
}
