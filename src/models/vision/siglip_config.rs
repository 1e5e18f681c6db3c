//! The configuration of a SigLIP, and of each of its towers.

use serde_json::Value;

use super::block::BlockShape;
use super::patches::Grid;
use super::tower_config::{block, tower, tower_of, BlockDefaults};
use crate::error::Result;
use crate::models::config::{declared, flag, layers_or, size_or, Declared, ModelConfig};
use crate::pretrained::Head;

/// The shape and the options of a SigLIP, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipConfig {
    declared: Declared,
    pub(super) text: SiglipTextConfig,
    pub(super) vision: SiglipVisionConfig,
}

/// The tower for texts of a SigLIP.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipTextConfig {
    declared: Declared,
    pub(super) block: BlockShape,
    pub(super) layers: i64,
    pub(super) vocab_size: i64,
    pub(super) max_positions: i64,
    pub(super) projection: i64,
}

/// The tower for images of a SigLIP.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipVisionConfig {
    declared: Declared,
    pub(super) block: BlockShape,
    pub(super) layers: i64,
    pub(super) grid: Grid,
    /// True if there is a head that pools the patches.
    pub(super) pools: bool,
    /// True if images may be padded, and positions are those of their parts.
    pub(super) pads: bool,
}

const TEXT: &[&str] = &["text_config"];
const VISION: &[&str] = &["vision_config"];

const BLOCK: BlockDefaults = BlockDefaults {
    size: 768,
    inner: 3072,
    heads: 12,
    activation: "gelu_pytorch_tanh",
    norm_eps: 1e-6,
};

impl SiglipConfig {
    /// The tower for texts.
    pub fn text(&self) -> &SiglipTextConfig {
        &self.text
    }

    /// The tower for images.
    pub fn vision(&self) -> &SiglipVisionConfig {
        &self.vision
    }
}

impl ModelConfig for SiglipConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["siglip"]
    }

    fn has_head(head: Head) -> bool {
        head == Head::None
    }

    fn from_value(config: &Value) -> Result<Self> {
        Ok(SiglipConfig {
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
            text: SiglipTextConfig::from_value(&tower(config, TEXT)?)?,
            vision: SiglipVisionConfig::from_value(&tower(config, VISION)?)?,
        })
    }

    declared!();
}

impl ModelConfig for SiglipTextConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["siglip_text_model"]
    }

    fn part_of(config: &Value) -> Result<Option<(&'static str, Value)>> {
        tower_of(config, "siglip", TEXT, ("text_model", Self::model_types()[0]))
    }

    fn from_value(config: &Value) -> Result<Self> {
        let block = block(config, &BLOCK)?;
        Ok(SiglipTextConfig {
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
            layers: layers_or(config, "num_hidden_layers", 12)?,
            vocab_size: size_or(config, "vocab_size", 32_000)?,
            max_positions: size_or(config, "max_position_embeddings", 64)?,
            projection: size_or(config, "projection_size", block.size)?,
            block,
        })
    }

    declared!();
}

impl ModelConfig for SiglipVisionConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["siglip_vision_model"]
    }

    fn part_of(config: &Value) -> Result<Option<(&'static str, Value)>> {
        tower_of(config, "siglip", VISION, ("vision_model", Self::model_types()[0]))
    }

    fn from_value(config: &Value) -> Result<Self> {
        Ok(SiglipVisionConfig {
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
            block: block(config, &BLOCK)?,
            layers: layers_or(config, "num_hidden_layers", 12)?,
            grid: Grid::read(config, 16)?,
            pools: flag(config, "vision_use_head", true)?,
            pads: false,
        })
    }

    declared!();
}

impl SiglipVisionConfig {
    /// The tower of an Idefics3: one without a head, for images that may be padded.
    pub(super) fn of_idefics3(config: &Value) -> Result<Self> {
        let mut config = config.clone();
        for (key, value) in [("hidden_size", 1152), ("num_attention_heads", 16), ("patch_size", 32)]
        {
            if config.get(key).is_none_or(Value::is_null) {
                config[key] = value.into();
            }
        }
        config["model_type"] = Self::model_types()[0].into();
        config["vision_use_head"] = false.into();
        Ok(SiglipVisionConfig { pads: true, ..Self::from_value(&config)? })
    }
}
