//! The configuration of a CLIP, and of each of its towers.

use serde_json::Value;

use super::block::BlockShape;
use super::patches::Grid;
use super::tower_config::{block, tower, tower_of, BlockDefaults};
use crate::error::Result;
use crate::models::config::{
    declared, integer_or, layers_or, number, size_or, Declared, ModelConfig,
};
use crate::pretrained::Head;

/// The shape and the options of a CLIP, read from a `config.json` of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    declared: Declared,
    pub(super) text: ClipTextConfig,
    pub(super) vision: ClipVisionConfig,
    pub(super) projection: i64,
    pub(super) logit_scale: f64,
}

/// The tower for texts of a CLIP.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    declared: Declared,
    pub(super) block: BlockShape,
    pub(super) layers: i64,
    pub(super) vocab_size: i64,
    pub(super) max_positions: i64,
    pub(super) eos: i64,
}

/// The tower for images of a CLIP.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionConfig {
    declared: Declared,
    pub(super) block: BlockShape,
    pub(super) layers: i64,
    pub(super) grid: Grid,
}

const TEXT: &[&str] = &["text_config_dict", "text_config"];
/// In older files there is a second key, which stands for the first as a whole: what it does not say is transformers'
/// default, whatever the first says.
pub(super) const VISION: &[&str] = &["vision_config_dict", "vision_config"];

const VISION_BLOCK: BlockDefaults =
    BlockDefaults { size: 768, inner: 3072, heads: 12, activation: "quick_gelu", norm_eps: 1e-5 };
const TEXT_BLOCK: BlockDefaults =
    BlockDefaults { size: 512, inner: 2048, heads: 8, ..VISION_BLOCK };

impl ClipConfig {
    /// The tower for texts.
    pub fn text(&self) -> &ClipTextConfig {
        &self.text
    }

    /// The tower for images.
    pub fn vision(&self) -> &ClipVisionConfig {
        &self.vision
    }
}

impl ModelConfig for ClipConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["clip"]
    }

    fn has_head(head: Head) -> bool {
        head == Head::None
    }

    fn from_value(config: &Value) -> Result<Self> {
        Ok(ClipConfig {
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
            text: ClipTextConfig::from_value(&tower(config, TEXT)?)?,
            vision: ClipVisionConfig::from_value(&tower(config, VISION)?)?,
            projection: size_or(config, "projection_dim", 512)?,
            logit_scale: number(config, "logit_scale_init_value", 2.6592)?,
        })
    }

    declared!();
}

impl ModelConfig for ClipTextConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["clip_text_model"]
    }

    fn part_of(config: &Value) -> Result<Option<(&'static str, Value)>> {
        tower_of(config, "clip", TEXT, ("text_model", Self::model_types()[0]))
    }

    fn from_value(config: &Value) -> Result<Self> {
        let read = ClipTextConfig {
            block: block(config, &TEXT_BLOCK)?,
            layers: layers_or(config, "num_hidden_layers", 12)?,
            vocab_size: size_or(config, "vocab_size", 49_408)?,
            max_positions: size_or(config, "max_position_embeddings", 77)?,
            eos: integer_or(config, "eos_token_id", 49_407)?,
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
        };
        Ok(read)
    }

    declared!();
}

impl ModelConfig for ClipVisionConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["clip_vision_model"]
    }

    fn part_of(config: &Value) -> Result<Option<(&'static str, Value)>> {
        tower_of(config, "clip", VISION, ("vision_model", Self::model_types()[0]))
    }

    fn from_value(config: &Value) -> Result<Self> {
        let read = ClipVisionConfig {
            block: block(config, &VISION_BLOCK)?,
            layers: layers_or(config, "num_hidden_layers", 12)?,
            grid: Grid::read(config, 32)?,
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
        };
        Ok(read)
    }

    declared!();
}
