//! The tower for images inside another model: that of a CLIP or of a SigLIP.

use serde_json::Value;
use tch::{Kind, Tensor};

use super::block::BlockShape;
use super::clip_config::ClipVisionConfig;
use super::clip_tower::ClipVision;
use super::siglip_config::SiglipVisionConfig;
use super::siglip_tower::SiglipVision;
use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::models::config::ModelConfig;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::Weights;

#[derive(Debug)]
pub(in crate::models) enum ImageTower {
    Clip(Box<ClipVision>),
    Siglip(Box<SiglipVision>),
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) enum ImageTowerConfig {
    Clip(ClipVisionConfig),
    Siglip(SiglipVisionConfig),
}

impl ImageTowerConfig {
    /// Reads the settings of a tower of this `model_type`.
    pub(in crate::models) fn read(model_type: &str, settings: &Value) -> Result<Self> {
        let is = |types: Vec<&str>| types.contains(&model_type);
        if is(ClipVisionConfig::model_types()) {
            return Ok(ImageTowerConfig::Clip(ClipVisionConfig::from_value(settings)?));
        }
        if is(SiglipVisionConfig::model_types()) {
            return Ok(ImageTowerConfig::Siglip(SiglipVisionConfig::from_value(settings)?));
        }
        refuse!(
            Unsupported,
            "the tower for images has the model_type '{model_type}', expected one of {}, {}",
            ClipVisionConfig::model_types().join(", "),
            SiglipVisionConfig::model_types().join(", ")
        )
    }

    pub(in crate::models) fn block(&self) -> &BlockShape {
        match self {
            ImageTowerConfig::Clip(config) => &config.block,
            ImageTowerConfig::Siglip(config) => &config.block,
        }
    }
}

impl ImageTower {
    pub(in crate::models) fn build(weights: &Weights, config: &ImageTowerConfig) -> Result<Self> {
        Ok(match config {
            ImageTowerConfig::Clip(config) => {
                ImageTower::Clip(Box::new(ClipVision::build(weights, config)?))
            }
            ImageTowerConfig::Siglip(config) => {
                ImageTower::Siglip(Box::new(SiglipVision::build(weights, config)?))
            }
        })
    }

    pub(in crate::models) fn kind(&self) -> Kind {
        match self {
            ImageTower::Clip(tower) => tower.kind(),
            ImageTower::Siglip(tower) => tower.kind(),
        }
    }

    /// The hidden states `[images, places, size]`.
    pub(in crate::models) fn hidden_states_with<'m>(
        &'m self,
        inputs: Inputs,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        match self {
            ImageTower::Clip(tower) => tower.hidden_states_with(inputs, tape),
            ImageTower::Siglip(tower) => tower.hidden_states_with(inputs, tape),
        }
    }

    /// Those of the patches alone.
    pub(in crate::models) fn patches(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            ImageTower::Clip(_) => Ok(hidden.f_narrow(1, 1, hidden.size()[1] - 1)?),
            ImageTower::Siglip(_) => Ok(hidden.shallow_clone()),
        }
    }
}
