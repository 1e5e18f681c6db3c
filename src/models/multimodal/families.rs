//! The families of models of images and texts, a row each.

use serde_json::{json, Value};

use super::connector::ConnectorConfig;
use super::family::{Family, Names, Part};
use super::mergers::MergersConfig;
use super::pixel_shuffle::PixelShuffleConfig;
use super::pooled_projector::PooledProjectorConfig;
use super::projector;
use super::tower::Taken;
use crate::error::Result;
use crate::models::config::not_implemented;
use crate::models::decoder::DecoderConfig;
use crate::models::vision::ImageTowerConfig;

const LLAVA: Family = Family {
    model_type: "llava",
    names: Names {
        tower: "vision_tower",
        connector: "multi_modal_projector",
        text: "language_model",
    },
    vision: Part {
        model_type: "clip_vision_model",
        fields: || {
            json!({
                "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336,
                "num_hidden_layers": 24, "num_attention_heads": 16,
            })
        },
    },
    text: Part { model_type: "llama", fields: || json!({}) },
    image_token: 32_000,
    connector: llava,
    in_tiles: false,
    looks_both_ways: false,
    packs: false,
    is_flat: false,
};

const IDEFICS3: Family = Family {
    model_type: "idefics3",
    names: Names { tower: "vision_model", connector: "connector", text: "text_model" },
    vision: Part { model_type: "idefics3_vision", fields: || json!({}) },
    text: Part { model_type: "llama", fields: || json!({"rms_norm_eps": 1e-5}) },
    image_token: 128_257,
    connector: idefics3,
    ..LLAVA
};

const QWEN3_VL: Family = Family {
    model_type: "qwen3_vl",
    names: Names { tower: "visual", connector: "visual", text: "language_model" },
    vision: Part { model_type: "qwen3_vl_vision", fields: || json!({}) },
    text: Part { model_type: "qwen3_vl_text", fields: || json!({}) },
    image_token: 151_655,
    connector: qwen_vl,
    packs: true,
    ..LLAVA
};

pub(super) const FAMILIES: &[Family] = &[
    LLAVA,
    Family { model_type: "llava_next", in_tiles: true, ..LLAVA },
    Family {
        model_type: "gemma3",
        vision: Part { model_type: "siglip_vision_model", fields: || json!({}) },
        text: Part { model_type: "gemma3_text", fields: || json!({}) },
        image_token: 262_144,
        connector: gemma3,
        looks_both_ways: true,
        ..LLAVA
    },
    IDEFICS3,
    Family {
        model_type: "qwen2_5_vl",
        vision: Part { model_type: "qwen2_5_vl_vision", fields: || json!({}) },
        text: Part { model_type: "qwen2_5_vl_text", fields: || json!({}) },
        is_flat: true,
        ..QWEN3_VL
    },
    QWEN3_VL,
    Family { model_type: "smolvlm", ..IDEFICS3 },
];

fn llava(
    config: &Value,
    tower: &ImageTowerConfig,
    text: &DecoderConfig,
) -> Result<(Taken, ConnectorConfig)> {
    let (taken, projector) = projector::read(config, tower, text)?;
    Ok((taken, ConnectorConfig::Projector(projector)))
}

fn gemma3(
    config: &Value,
    tower: &ImageTowerConfig,
    text: &DecoderConfig,
) -> Result<(Taken, ConnectorConfig)> {
    let connector = PooledProjectorConfig::read(config, tower, text)?;
    Ok((Taken::Last, ConnectorConfig::Pooled(connector)))
}

fn idefics3(
    config: &Value,
    tower: &ImageTowerConfig,
    text: &DecoderConfig,
) -> Result<(Taken, ConnectorConfig)> {
    let connector = PixelShuffleConfig::read(config, tower, text)?;
    Ok((Taken::Last, ConnectorConfig::Shuffle(connector)))
}

fn qwen_vl(
    _config: &Value,
    tower: &ImageTowerConfig,
    text: &DecoderConfig,
) -> Result<(Taken, ConnectorConfig)> {
    let Some(tower) = tower.packed() else {
        return not_implemented("another tower for images than the model's own");
    };
    Ok((Taken::Last, ConnectorConfig::Mergers(MergersConfig::read(tower, text)?)))
}
