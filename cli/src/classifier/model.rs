//! The classifier that is trained: opened from a directory with a head for the labels, and its logits.

use anyhow::{bail, Result};
use ln_tuning::models::{AnyModel, Head, Load, Model};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::recompute::Tape;
use ln_tuning::{LnTuningConfig, Modules, TaskType};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::labels::Labels;
use crate::train::order::step_seed;
use crate::train::settings::Settings;

pub struct Classifier {
    model: AnyModel,
    /// `config.json`, with the labels.
    pub config: Value,
    /// The modules of the head, some of which are new.
    head: Vec<&'static str>,
}

/// Rows of one length, or images of one size.
pub struct Inputs {
    /// Token ids, or pixels.
    pub main: Tensor,
    /// 0 at padding; none without padding.
    pub mask: Option<Tensor>,
    /// The number of each token's text in a pair.
    pub types: Option<Tensor>,
}

impl Classifier {
    pub fn open(
        files: ModelFiles,
        labels: &Labels,
        images: bool,
        settings: &Settings,
        device: Device,
    ) -> Result<(VarStore, Self)> {
        tch::manual_seed(step_seed(settings.seed, u64::MAX, 0));
        let model_type = files.model_type().unwrap_or_default().to_owned();
        let has_pooler = files.variables().iter().any(|variable| variable.name.contains("pooler."));
        let head = match (model_type.as_str(), images) {
            ("vit" | "dinov2" | "clip" | "siglip", true) | ("roberta" | "xlm-roberta", false) => {
                vec!["classifier"]
            }
            ("distilbert", false) => vec!["pre_classifier", "classifier"],
            // A pooler that is made anew is not in the base: it must be in the adapter.
            ("bert", false) if !has_pooler => vec!["pooler", "classifier"],
            ("bert", false) => vec!["classifier"],
            (_, images) => {
                let (what, known) = if images {
                    ("images", "vit, dinov2, clip, siglip")
                } else {
                    ("texts", "bert, roberta, xlm-roberta, distilbert")
                };
                bail!(
                    "'{}' has the model_type '{model_type}'; for {what} there are {known}",
                    settings.model.display()
                );
            }
        };
        let mut load = Load::on(device).kind(settings.kind.on(device)).frozen(settings.base);
        load = if labels.of_model {
            let classifier =
                if images { Head::ImageClassification } else { Head::SequenceClassification };
            load.head(classifier)
        } else {
            load.labels(labels.names.clone())
        };
        let (vs, model) = AnyModel::from_files(files, &load)?;
        let mut config = model.config();
        if labels.are_numbers() {
            config["problem_type"] = json!("regression");
        } else if !config["problem_type"].is_null() {
            config["problem_type"] = json!("single_label_classification");
        }
        Ok((vs, Classifier { model, config, head }))
    }

    /// The longest text; none for images.
    pub fn max_length(&self) -> Option<i64> {
        match &self.model {
            AnyModel::Encoder(model) => Some(model.config().max_length()),
            _ => None,
        }
    }

    /// The adapter's configuration with the head in it.
    pub fn adapter(&self, mut config: LnTuningConfig) -> LnTuningConfig {
        if let AnyModel::Encoder(_) = self.model {
            config.task_type = config.task_type.or(Some(TaskType::SeqCls));
        }
        // A head among the targets is trained already, as part of them.
        let targeted = match &config.target_modules {
            Some(Modules::List(names)) => names.clone(),
            _ => Vec::new(),
        };
        let saved = config.modules_to_save.get_or_insert_default();
        for module in self.head.iter().map(|module| (*module).to_owned()) {
            if !saved.contains(&module) && !targeted.contains(&module) {
                saved.push(module);
            }
        }
        config
    }

    /// `[batch, labels]` in f32. Inputs are on the model's device.
    pub fn logits<'m>(
        &'m self,
        inputs: &Inputs,
        train: bool,
        tape: &mut Tape<'m>,
    ) -> ln_tuning::Result<Tensor> {
        let Inputs { main, mask, types } = inputs;
        let logits = match &self.model {
            AnyModel::Encoder(model) => {
                let inputs = ln_tuning::models::Inputs::new(main)
                    .attention_mask(mask.as_ref())
                    .token_type_ids(types.as_ref())
                    .train(train);
                model.logits_with(inputs, tape)?
            }
            model => {
                let pixels = main.f_to_kind(model.kind())?;
                let inputs = ln_tuning::models::Inputs::images(&pixels).train(train);
                model.logits_with(inputs, tape)?
            }
        };
        Ok(logits.f_to_kind(Kind::Float)?)
    }
}
