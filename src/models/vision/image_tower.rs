//! The tower for images inside another model: that of a CLIP or of a SigLIP.

use serde_json::Value;
use tch::{Kind, Tensor};

use super::block::BlockShape;
use super::clip_config::ClipVisionConfig;
use super::clip_tower::ClipVision;
use super::packed::PackedVision;
use super::packed_config::PackedVisionConfig;
use super::patches::Grid;
use super::siglip_config::SiglipVisionConfig;
use super::siglip_tower::SiglipVision;
use crate::autograd::recompute::Tape;
use crate::error::{refuse, Result};
use crate::models::config::{not_implemented, ModelConfig};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::Weights;

#[derive(Debug)]
pub(in crate::models) enum ImageTower {
    Clip(Box<ClipVision>),
    Siglip(Box<SiglipVision>),
    Packed(Box<PackedVision>),
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) enum ImageTowerConfig {
    Clip(ClipVisionConfig),
    Siglip(SiglipVisionConfig),
    Packed(PackedVisionConfig),
}

/// The names of Idefics3's tower, in files of all versions.
const OF_IDEFICS3: [&str; 4] = ["idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision"];

impl ImageTowerConfig {
    /// Reads the settings of a tower, by their `model_type`.
    pub(in crate::models) fn read(settings: &Value) -> Result<Self> {
        let model_type = settings.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let is = |types: Vec<&str>| types.contains(&model_type);
        if is(ClipVisionConfig::model_types()) {
            return Ok(ImageTowerConfig::Clip(ClipVisionConfig::from_value(settings)?));
        }
        if is(SiglipVisionConfig::model_types()) {
            return Ok(ImageTowerConfig::Siglip(SiglipVisionConfig::from_value(settings)?));
        }
        if OF_IDEFICS3.contains(&model_type) {
            return Ok(ImageTowerConfig::Siglip(SiglipVisionConfig::of_idefics3(settings)?));
        }
        refuse!(
            Unsupported,
            "the tower for images has the model_type '{model_type}', expected one of {}, {}",
            ClipVisionConfig::model_types().join(", "),
            SiglipVisionConfig::model_types().join(", ")
        )
    }

    /// Reads the settings of a tower for images of any size, cut into patches.
    pub(in crate::models) fn read_packed(settings: &Value) -> Result<Self> {
        Ok(ImageTowerConfig::Packed(PackedVisionConfig::read(settings)?))
    }

    /// The settings of a tower for images of any size.
    pub(in crate::models) fn packed(&self) -> Option<&PackedVisionConfig> {
        match self {
            ImageTowerConfig::Packed(config) => Some(config),
            _ => None,
        }
    }

    /// The shape of a block, that of images where they have one, the number of blocks.
    fn parts(&self) -> (&BlockShape, Option<&Grid>, i64) {
        match self {
            ImageTowerConfig::Clip(config) => (&config.block, Some(&config.grid), config.layers),
            ImageTowerConfig::Siglip(config) => (&config.block, Some(&config.grid), config.layers),
            ImageTowerConfig::Packed(config) => (&config.block, None, config.layers),
        }
    }

    /// Width of the hidden states.
    pub(in crate::models) fn width(&self) -> i64 {
        self.parts().0.size
    }

    pub(in crate::models) fn norm_eps(&self) -> f64 {
        self.parts().0.norm_eps
    }

    pub(in crate::models) fn layers(&self) -> i64 {
        self.parts().2
    }

    /// The pixels on each side of an image; 0 where images are of any size.
    pub(in crate::models) fn image_size(&self) -> i64 {
        self.parts().1.map_or(0, |grid| grid.image_size)
    }

    /// The patches on each side of an image; 0 where images are of any size.
    pub(in crate::models) fn side(&self) -> i64 {
        self.parts().1.map_or(0, Grid::side)
    }

    /// The number of places of an image: those of the patches, and of a class token.
    pub(in crate::models) fn places(&self) -> i64 {
        i64::from(matches!(self, ImageTowerConfig::Clip(_))) + self.side().pow(2)
    }

    /// True if images may be padded.
    pub(in crate::models) fn pads(&self) -> bool {
        matches!(self, ImageTowerConfig::Siglip(SiglipVisionConfig { pads: true, .. }))
    }

    /// Images must have the shape of the configuration.
    pub(in crate::models) fn check_images(&self, images: &Tensor) -> Result<()> {
        self.parts().1.map_or(Ok(()), |grid| grid.check_images(images))
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
            ImageTowerConfig::Packed(config) => {
                ImageTower::Packed(Box::new(PackedVision::build(weights, config)?))
            }
        })
    }

    pub(in crate::models) fn kind(&self) -> Kind {
        match self {
            ImageTower::Clip(tower) => tower.kind(),
            ImageTower::Siglip(tower) => tower.kind(),
            ImageTower::Packed(tower) => tower.kind(),
        }
    }

    /// The hidden states behind so many blocks each, in this order; none stands for the first block's input.
    pub(in crate::models) fn hidden_states_at<'m>(
        &'m self,
        images: &Tensor,
        depths: &[usize],
        train: bool,
        tape: &mut Tape<'m>,
    ) -> Result<Vec<Tensor>> {
        match self {
            ImageTower::Clip(tower) => tower.hidden_states_at(images, depths, train, tape),
            ImageTower::Siglip(tower) => tower.hidden_states_at(images, depths, train, tape),
            ImageTower::Packed(_) => {
                not_implemented("the hidden states of some blocks of this tower for images")
            }
        }
    }

    /// The hidden states `[images, places, size]`; `[patches, width]` where images are of any size.
    pub(in crate::models) fn hidden_states_with<'m>(
        &'m self,
        inputs: Inputs,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        match self {
            ImageTower::Clip(tower) => tower.hidden_states_with(inputs, tape),
            ImageTower::Siglip(tower) => tower.hidden_states_with(inputs, tape),
            ImageTower::Packed(tower) => tower.states(inputs, tape),
        }
    }

    /// Those of the patches alone.
    pub(in crate::models) fn patches(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            ImageTower::Clip(_) => Ok(hidden.f_narrow(1, 1, hidden.size()[1] - 1)?),
            ImageTower::Siglip(_) | ImageTower::Packed(_) => Ok(hidden.shallow_clone()),
        }
    }
}
