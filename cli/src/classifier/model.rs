//! The classifier that is trained: opened from a directory with a head for the labels, and its logits.

use anyhow::{bail, Result};
use ln_tuning::models::{AnyModel, Dinov2, Encoder, EncoderHead, ViTForImageClassification};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{LnTuningConfig, Modules, TaskType};
use serde_json::{json, Map, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::labels::Labels;
use crate::train::order::step_seed;
use crate::train::settings::Settings;

pub struct Classifier {
    net: Net,
    /// `config.json`, with the labels.
    pub config: Value,
    model_type: String,
    /// The modules of the head, some of which are new.
    head: Vec<&'static str>,
}

enum Net {
    Encoder(Box<Encoder>),
    ViT(Box<ViTForImageClassification>),
    Dinov2(Box<Dinov2>),
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
        let (dir, kind) = (&settings.model, settings.kind.on(device));
        tch::manual_seed(step_seed(settings.seed, u64::MAX));
        let model_type = files.model_type().unwrap_or_default().to_owned();
        let mut config = files.config().clone();
        let has_pooler = files.variables().iter().any(|variable| variable.name.contains("pooler."));
        let names = &labels.names;
        let (vs, net, head) = match (model_type.as_str(), images) {
            ("vit" | "dinov2", true) if labels.of_model => {
                let (vs, model) = AnyModel::from_files(files, device, kind)?;
                match model {
                    AnyModel::ViT(model) => (vs, Net::ViT(model), vec!["classifier"]),
                    AnyModel::Dinov2(model) => (vs, Net::Dinov2(model), vec!["classifier"]),
                    _ => bail!("'{}' does not hold a classifier of images", dir.display()),
                }
            }
            ("vit", true) => {
                let (vs, model) = ViTForImageClassification::from_pretrained_with_labels(
                    dir, names, device, kind,
                )?;
                (vs, Net::ViT(Box::new(model)), vec!["classifier"])
            }
            ("dinov2", true) => {
                let (vs, model) = Dinov2::from_pretrained_with_labels(dir, names, device, kind)?;
                (vs, Net::Dinov2(Box::new(model)), vec!["classifier"])
            }
            ("bert" | "roberta" | "xlm-roberta" | "distilbert", false) => {
                let head = EncoderHead::SequenceClassification;
                let (vs, model) = if labels.of_model {
                    Encoder::from_pretrained_as(dir, head, device, kind)?
                } else {
                    Encoder::from_pretrained_with_labels(dir, head, names, device, kind)?
                };
                let modules = match model_type.as_str() {
                    "distilbert" => vec!["pre_classifier", "classifier"],
                    // A pooler that is made anew is not in the base: it must be in the adapter.
                    "bert" if !has_pooler => vec!["pooler", "classifier"],
                    _ => vec!["classifier"],
                };
                (vs, Net::Encoder(Box::new(model)), modules)
            }
            (_, images) => {
                let (what, known) = if images {
                    ("images", "vit, dinov2")
                } else {
                    ("texts", "bert, roberta, xlm-roberta, distilbert")
                };
                bail!(
                    "'{}' has the model_type '{model_type}'; for {what} there are {known}",
                    dir.display()
                );
            }
        };
        let numbered = names.iter().enumerate();
        let by_id: Map<String, Value> =
            numbered.clone().map(|(id, name)| (id.to_string(), json!(name))).collect();
        let by_name: Map<String, Value> =
            numbered.map(|(id, name)| (name.clone(), json!(id))).collect();
        config["id2label"] = Value::Object(by_id);
        config["label2id"] = Value::Object(by_name);
        if let Net::Encoder(model) = &net {
            config = serde_json::from_str(&model.config().to_json())?;
        }
        Ok((vs, Classifier { net, config, model_type, head }))
    }

    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// The longest text; none for images.
    pub fn max_length(&self) -> Option<i64> {
        match &self.net {
            Net::Encoder(model) => Some(model.config().max_length()),
            _ => None,
        }
    }

    /// The adapter's configuration with the head in it.
    pub fn adapter(&self, mut config: LnTuningConfig) -> LnTuningConfig {
        if let Net::Encoder(_) = self.net {
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
    pub fn logits(&self, inputs: &Inputs, train: bool) -> ln_tuning::Result<Tensor> {
        let Inputs { main, mask, types } = inputs;
        let logits = match &self.net {
            Net::Encoder(model) => model.logits(main, mask.as_ref(), types.as_ref(), train)?,
            Net::ViT(model) => model.logits(&main.f_to_kind(model.kind())?, train)?,
            Net::Dinov2(model) => model.logits(&main.f_to_kind(model.kind())?, train)?,
        };
        Ok(logits.f_to_kind(Kind::Float)?)
    }
}
