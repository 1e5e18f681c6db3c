//! The configuration of a CLIP, and of each of its towers.

use serde_json::{Map, Value};

use super::block::BlockShape;
use super::patches::Grid;
use crate::error::{refuse, Result};
use crate::models::config::{
    declared, integer_or, layers_or, number, size_or, text, Declared, ModelConfig,
};
use crate::models::nn::Activation;
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

impl ClipVisionConfig {
    /// The number of places of an image: the class token's and the patches'.
    pub(in crate::models) fn places(&self) -> i64 {
        1 + self.grid.side().pow(2)
    }

    /// Width of the hidden states.
    pub(in crate::models) fn width(&self) -> i64 {
        self.block.size
    }

    pub(in crate::models) fn layers(&self) -> i64 {
        self.layers
    }
}

impl ModelConfig for ClipConfig {
    fn model_types() -> Vec<&'static str> {
        vec!["clip"]
    }

    fn from_value(config: &Value) -> Result<Self> {
        Ok(ClipConfig {
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
            text: ClipTextConfig::from_value(&tower(config, "text_config")?)?,
            vision: ClipVisionConfig::from_value(&tower(config, "vision_config")?)?,
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

    fn from_value(config: &Value) -> Result<Self> {
        let read = ClipTextConfig {
            block: block(config, (512, 2048, 8))?,
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

    fn from_value(config: &Value) -> Result<Self> {
        let read = ClipVisionConfig {
            block: block(config, (768, 3072, 12))?,
            layers: layers_or(config, "num_hidden_layers", 12)?,
            grid: Grid::read(config, 32)?,
            declared: Declared::read(config, &Self::model_types(), &[Head::None], Head::None)?,
        };
        Ok(read)
    }

    declared!();
}

/// The settings of one tower. In older files there is a second key, which stands for the first as a whole: what it does
/// not say is transformers' default, whatever the first says.
fn tower(config: &Value, key: &str) -> Result<Value> {
    let keys = [format!("{key}_dict"), key.to_owned()];
    let given = keys.iter().find_map(|key| config.get(key).filter(|value| !value.is_null()));
    let mut fields = match given {
        None => Map::new(),
        Some(Value::Object(fields)) => fields.clone(),
        Some(_) => refuse!(InvalidConfig, "'{key}' is not a mapping"),
    };
    // Older files name the whole model here.
    fields.remove("model_type");
    fields.remove("architectures");
    Ok(Value::Object(fields))
}

fn block(config: &Value, (size, inner, heads): (i64, i64, i64)) -> Result<BlockShape> {
    let act = text(config, "hidden_act", "quick_gelu")?;
    let shape = BlockShape {
        size: size_or(config, "hidden_size", size)?,
        inner: size_or(config, "intermediate_size", inner)?,
        heads: size_or(config, "num_attention_heads", heads)?,
        qkv_bias: true,
        norm_eps: number(config, "layer_norm_eps", 1e-5)?,
        activation: Activation::named(act, "hidden_act")?,
        dropout: 0.,
        attention_dropout: number(config, "attention_dropout", 0.)?,
        scale: 1.,
        initializer_range: number(config, "initializer_range", 0.02)?,
    };
    shape.check()?;
    Ok(shape)
}
