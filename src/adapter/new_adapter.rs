//! A new adapter for the variables: of a configuration, or of a directory.

use serde_json::Value;

use super::attachment::Attachment;
use super::config::LnTuningConfig;
use super::options::{AdapterOptions, LoadOptions};
use super::peft::carried::Carried;
use super::peft::directory::SavedAdapter;
use super::peft::keys::KeyMapping;
use super::peft::layouts::{all_known, Fit, Known};
use super::peft::state_dict::{self, LoadReport};
use super::selection::Selection;
use super::weights::Adapter;
use crate::error::Result;
use crate::pretrained::Head;

/// An adapter of a configuration; with what is `saved`, among the names of that.
pub(super) fn make_adapter(
    attachment: &Attachment,
    config: LnTuningConfig,
    options: &AdapterOptions,
    saved: Option<&mut Carried>,
) -> Result<Adapter> {
    let variables = &attachment.variables;
    // The names and shapes of variables do not change, so an equal configuration has an equal selection among them.
    let asked = |other: &&Adapter| {
        let (a, b) = (&other.config, &config);
        other.selected_among == variables.len()
            && other.selection.trained().count() == other.selection.modules().len()
            && other.options.model_type == options.model_type
            && other.options.norms == options.norms
            && other.options.layers == options.layers
            && other.selection.is_without_unused() == saved.is_none()
            && (&a.target_modules, &a.exclude_modules, &a.modules_to_save, a.task_type, a.recipe)
                == (
                    &b.target_modules,
                    &b.exclude_modules,
                    &b.modules_to_save,
                    b.task_type,
                    b.recipe,
                )
    };
    let selection = match attachment.adapters.values().rev().take(8).find(asked) {
        Some(other) => other.selection.clone(),
        None => {
            let model_type = attachment.model_type(options);
            let infos = variables.infos()?;
            let select = if saved.is_some() { Selection::of_saved } else { Selection::new };
            let mut selection = select(&infos, &config, model_type, options.norms)?;
            if let Some(layers) = options.layers {
                selection = selection.in_layers(&infos, &config, layers)?;
            }
            if saved.is_none() {
                let (model_config, head) = match &attachment.model {
                    Some(model) => (&model.config, model.head),
                    None => (&Value::Null, Head::None),
                };
                selection = selection.used_by(&infos, &config, model_config, head)?;
            }
            if selection.excludes_nothing() {
                eprintln!("warning: `exclude_modules` matches no module: compare it with the names in the VarStore");
            }
            selection
        }
    };
    let selection = match saved {
        Some(carried) => carried.settle(attachment, selection)?,
        None => selection,
    };
    for index in selection.variables().filter_map(|name| variables.position(name)) {
        variables.check_replaceable(index)?;
    }
    Adapter::new(variables, |v| attachment.base_data(v), config, selection, options.clone())
}

/// An adapter of a directory.
pub(super) fn load(
    attachment: &Attachment,
    files: SavedAdapter,
    name: &str,
    options: &LoadOptions,
    report: &mut LoadReport,
) -> Result<Adapter> {
    let (files, options) = fitted(attachment, files, name, options)?;
    let config = LnTuningConfig { inference_mode: !options.is_trainable, ..files.config };
    let mut carried = Carried::among(files.tensors, &options.key_mapping)?;
    let mut adapter = make_adapter(attachment, config, &options.adapter, Some(&mut carried))?;
    *report = state_dict::load(&mut adapter, name, &carried.tensors, &options)?;
    report.foreign_keys.extend(carried.of_the_base);
    Ok(adapter)
}

/// An adapter in the names of the variables, if it has those of another layout of the model.
fn fitted(
    attachment: &Attachment,
    files: SavedAdapter,
    name: &str,
    options: &LoadOptions,
) -> Result<(SavedAdapter, LoadOptions)> {
    let mapping = KeyMapping::new(&options.key_mapping)?;
    let keys: Vec<&str> = files.tensors.iter().map(|(key, _)| key.as_str()).collect();
    let variables = &attachment.variables;
    let mut options = options.clone();
    if all_known(&keys, &mapping, |name| variables.position(name).is_some())? {
        return Ok((files, options));
    }
    let known = Known {
        variables: &variables.infos()?,
        model_type: attachment.model_type(&options.adapter),
        norms: options.adapter.norms,
        of_one_class: true,
        may_lack: options.allow_missing,
    };
    let renamed = match known.fit(&keys, &files.config, name, &mapping)? {
        Fit::AsItIs => return Ok((files, options)),
        Fit::InPart(_, error) if !options.allow_unexpected => return Err(error),
        Fit::Renamed(renamed) | Fit::InPart(renamed, _) => renamed,
    };
    options.key_mapping.clear();
    Ok((files.renamed(renamed), options))
}
