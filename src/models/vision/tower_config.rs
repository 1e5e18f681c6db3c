//! The configuration of a tower inside that of a whole model.

use serde_json::{Map, Value};

use super::block::BlockShape;
use crate::error::{refuse, Result};
use crate::models::config::{number, size_or, text};
use crate::models::nn::{Activation, NormKind};

/// Settings of a tower's blocks where its configuration has none.
pub(super) struct BlockDefaults {
    pub(super) size: i64,
    pub(super) inner: i64,
    pub(super) heads: i64,
    pub(super) activation: &'static str,
    pub(super) norm_eps: f64,
}

/// The settings of one tower: the first of these keys that is there, else none, which means the defaults.
pub(super) fn tower(config: &Value, keys: &[&str]) -> Result<Value> {
    let found =
        keys.iter().find_map(|key| Some((key, config.get(key).filter(|value| !value.is_null())?)));
    let mut fields = match found {
        None => Map::new(),
        Some((_, Value::Object(fields))) => fields.clone(),
        Some((key, _)) => refuse!(InvalidConfig, "'{key}' is not a mapping"),
    };
    // Older files name the whole model here.
    fields.remove("model_type");
    fields.remove("architectures");
    Ok(Value::Object(fields))
}

/// The module of a tower of this type, and its configuration, where that of a `whole` model is given.
pub(super) fn tower_of(
    config: &Value,
    whole: &str,
    keys: &[&str],
    (module, model_type): (&'static str, &str),
) -> Result<Option<(&'static str, Value)>> {
    if config.get("model_type").and_then(Value::as_str) != Some(whole) {
        return Ok(None);
    }
    let mut settings = tower(config, keys)?;
    settings["model_type"] = model_type.into();
    Ok(Some((module, settings)))
}

/// The block of a tower of CLIP or SigLIP.
pub(super) fn block(config: &Value, defaults: &BlockDefaults) -> Result<BlockShape> {
    let act = text(config, "hidden_act", defaults.activation)?;
    let shape = BlockShape {
        size: size_or(config, "hidden_size", defaults.size)?,
        inner: size_or(config, "intermediate_size", defaults.inner)?,
        heads: size_or(config, "num_attention_heads", defaults.heads)?,
        qkv_bias: true,
        norm: NormKind::Layer,
        norm_eps: number(config, "layer_norm_eps", defaults.norm_eps)?,
        activation: Activation::named(act, "hidden_act")?,
        dropout: 0.,
        attention_dropout: number(config, "attention_dropout", 0.)?,
        scale: 1.,
        initializer_range: number(config, "initializer_range", 0.02)?,
    };
    shape.check()?;
    Ok(shape)
}
