//! The tower for images of a CLIP or a SigLIP as a classifier, as transformers' `CLIPForImageClassification` and
//! `SiglipForImageClassification`.

use std::sync::Arc;

use serde_json::Value;
use tch::nn::Init;
use tch::{Kind, Tensor};

use super::clip_config;
use super::image_tower::{ImageTower, ImageTowerConfig};
use super::tower_config::tower;
use crate::autograd::recompute::Tape;
use crate::error::Result;
use crate::models::config::{declared, number, Declared, ModelConfig};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{Linear, Sites, Weights};
use crate::pretrained::Head;

/// The shape and the options of the tower, and the labels, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerClassifierConfig {
    declared: Declared,
    tower: ImageTowerConfig,
    initializer_factor: f64,
}

impl ModelConfig for TowerClassifierConfig {
    const CLASSIFIER: Head = Head::ImageClassification;

    fn model_types() -> Vec<&'static str> {
        vec!["clip", "siglip"]
    }

    fn has_head(head: Head) -> bool {
        head == Head::ImageClassification
    }

    fn from_value(config: &Value) -> Result<Self> {
        let (heads, head) = (&[Head::ImageClassification], Head::ImageClassification);
        let declared = Declared::read(config, &Self::model_types(), heads, head)?;
        let mut settings = tower(config, clip_config::VISION)?;
        settings["model_type"] = format!("{}_vision_model", declared.model_type()).into();
        Ok(TowerClassifierConfig {
            tower: ImageTowerConfig::read(&settings)?,
            initializer_factor: number(config, "initializer_factor", 1.)?,
            declared,
        })
    }

    declared!();
}

/// An image classifier: the tower for images of a CLIP or a SigLIP, and a linear head on the mean of the patches.
///
/// Variables are named as in transformers: `vision_model.encoder.layers.0.layer_norm1.weight`, …, `classifier.bias`.
/// Files of both towers open too, with [`Load::labels`](crate::models::Load::labels): the tower for texts is left out.
///
/// The mean is that of the hidden states: CLIP's `post_layernorm`, and the head of SigLIP's tower, stand behind them
/// and get no gradient.
#[derive(Debug)]
#[doc(alias = "CLIPForImageClassification")]
#[doc(alias = "SiglipForImageClassification")]
pub struct TowerClassifier {
    config: TowerClassifierConfig,
    tower: ImageTower,
    classifier: Linear,
    sites: Arc<Sites>,
}

impl Model for TowerClassifier {
    type Config = TowerClassifierConfig;

    fn build(weights: &Weights, config: &TowerClassifierConfig) -> Result<Self> {
        let size = config.tower.width();
        let classes = (size, config.labels().len() as i64);
        let stdev = config.initializer_factor / (size as f64).sqrt();
        let init = Init::Randn { mean: 0., stdev };
        Ok(TowerClassifier {
            tower: ImageTower::build(&weights.at("vision_model"), &config.tower)?,
            classifier: Linear::build(&weights.at("classifier"), classes, true, init)?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &TowerClassifierConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.tower.kind()
    }

    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        self.tower.hidden_states_with(inputs, tape)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        let patches = self.tower.patches(&hidden)?;
        let mean = patches.f_mean_dim([1_i64].as_slice(), false, hidden.f_kind()?)?;
        self.classifier.forward(&mean)
    }
}
