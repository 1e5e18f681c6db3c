//! The families of models of images and texts, a row each.

use serde_json::Value;

use super::connector::ConnectorConfig;
use super::family::{Family, Names, Part};
use super::projector;
use super::tower::{Taken, TowerConfig};
use crate::error::Result;
use crate::models::decoder::DecoderConfig;

pub(super) const FAMILIES: &[Family] = &[Family {
    model_type: "llava",
    names: Names {
        tower: "vision_tower",
        connector: "multi_modal_projector",
        text: "language_model",
    },
    vision: Part {
        key: "vision_config",
        model_type: "clip_vision_model",
        fields: &[
            ("hidden_size", 1024),
            ("intermediate_size", 4096),
            ("patch_size", 14),
            ("image_size", 336),
            ("num_hidden_layers", 24),
            ("num_attention_heads", 16),
        ],
    },
    text: Part { key: "text_config", model_type: "llama", fields: &[] },
    image_token: (["image_token_id", "image_token_index"], 32_000),
    connector: llava,
}];

fn llava(
    config: &Value,
    tower: &TowerConfig,
    text: &DecoderConfig,
) -> Result<(Taken, ConnectorConfig)> {
    let (taken, projector) = projector::read(config, tower, text)?;
    Ok((taken, ConnectorConfig::Projector(projector)))
}
