//! The stages of a run: what each trained is carried into the next, and is one adapter in the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ln_tuning::models::{Head, Load};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{
    LnTuningConfig, LnTuningModel, LoadOptions, Modules, Norms, SavedAdapter, Selection,
    DEFAULT_ADAPTER,
};
use tch::nn::VarStore;
use tch::Device;

use super::model::LanguageModel;
use crate::train::settings::Settings;

/// Merges adapters into a model, in the kind that it has.
pub fn carry<'p>(vs: &VarStore, adapters: impl Iterator<Item = &'p Path>) -> Result<()> {
    for dir in adapters {
        let load = LoadOptions::default();
        let carried = LnTuningModel::from_pretrained_with(vs, dir, DEFAULT_ADAPTER, &load);
        let (tuned, _) = carried.with_context(|| format!("the adapter '{}'", dir.display()))?;
        tuned.merge_and_unload()?;
    }
    Ok(())
}

/// One adapter of all modules that some adapters have, by their whole names. Of what several have, the last counts.
pub fn combine(settings: &Settings, adapters: &[PathBuf], out: &Path) -> Result<()> {
    let files = ModelFiles::open(&settings.model)?;
    let saved = adapters.iter().map(SavedAdapter::open).collect::<ln_tuning::Result<Vec<_>>>()?;
    let (mut targets, mut saves) = (BTreeSet::new(), BTreeSet::new());
    let variables = files.variables_with_copies();
    for adapter in &saved {
        let config = &adapter.config;
        saves.extend(config.modules_to_save.iter().flatten().cloned());
        let of_targets = LnTuningConfig { modules_to_save: None, ..config.clone() };
        let selection =
            Selection::new(&variables, &of_targets, files.model_type(), Norms::default())?;
        targets.extend(selection.modules().iter().map(|module| module.path.clone()));
    }
    let last = saved.last().context("there is no stage")?;
    let config = LnTuningConfig {
        target_modules: Some(Modules::List(targets.into_iter().collect())),
        exclude_modules: None,
        modules_to_save: (!saves.is_empty()).then(|| saves.into_iter().collect()),
        ..last.config.clone()
    };
    let load = Load::on(Device::Cpu).head(Head::LanguageModel);
    let (vs, _model) = LanguageModel::load(files, &load)?;
    let options = settings.adapter_options().norms(Norms::default()).layers(None);
    let mut tuned = LnTuningModel::with_options(&vs, config, DEFAULT_ADAPTER, &options)?;
    for adapter in &saved {
        let load = LoadOptions::default().allow_missing(true);
        tuned.load_state_dict(DEFAULT_ADAPTER, &adapter.tensors, &load)?;
    }
    Ok(tuned.save_pretrained(out).map(drop)?)
}
