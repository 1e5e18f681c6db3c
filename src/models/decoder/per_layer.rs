//! What may differ from layer to layer: windows and ropes.

use serde_json::Value;

use super::rope::Rope;
use crate::error::{Error, ErrorKind, Result};
use crate::models::fields::{integer, integer_or, number};

/// Which layers see a window only: by `layer_types` where it stands, else by the family's habit.
pub(super) fn windows(
    config: &Value,
    model_type: &str,
    used: bool,
    layers: i64,
) -> Result<Vec<Option<i64>>> {
    let window = match config.get("sliding_window") {
        Some(value) if used && !value.is_null() => Some(integer(config, "sliding_window")?),
        _ => None,
    };
    let types = config.get("layer_types").and_then(Value::as_array);
    let from = integer_or(config, "max_window_layers", 28)?;
    (0..layers)
        .map(|layer| {
            let slides = match types.and_then(|types| types.get(layer as usize)).and_then(Value::as_str) {
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                Some(other) => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("'layer_types' holds '{other}', expected full_attention or sliding_attention"),
                    ));
                }
                None if model_type == "gemma2" => layer % 2 == 0,
                None if model_type == "gemma3_text" => {
                    (layer + 1) % integer_or(config, "sliding_window_pattern", 6)? != 0
                }
                None if model_type == "smollm3" => !turned(config, layer)?,
                None if model_type.starts_with("qwen") => layer >= from,
                None => true,
            };
            Ok(window.filter(|_| slides))
        })
        .collect()
}

/// SmolLM3 turns queries and keys in some layers only.
fn turned(config: &Value, layer: i64) -> Result<bool> {
    match config.get("no_rope_layers").and_then(Value::as_array) {
        // Despite the name, 1 stands for layers with rope.
        Some(layers) => Ok(layers.get(layer as usize).and_then(Value::as_i64) != Some(0)),
        None => Ok((layer + 1) % integer_or(config, "no_rope_layer_interval", 4)?.max(1) != 0),
    }
}

/// The ropes of a model and which layer uses which.
pub(super) fn ropes(
    config: &Value,
    model_type: &str,
    theta: (&str, f64),
    windows: &[Option<i64>],
) -> Result<(Vec<Rope>, Vec<Option<usize>>)> {
    if model_type != "gemma3_text" {
        let layers = (0..windows.len() as i64).map(|layer| {
            let used = model_type != "smollm3" || turned(config, layer)?;
            Ok(used.then_some(0))
        });
        return Ok((vec![Rope::from_config(config, theta)?], layers.collect::<Result<_>>()?));
    }
    // Layers with a window have a rope of their own.
    let nested = |key: &str| config.get("rope_parameters").and_then(|rope| rope.get(key));
    let (full, sliding) = match (nested("full_attention"), nested("sliding_attention")) {
        (Some(full), Some(sliding)) => (
            Rope::from_config(&serde_json::json!({"rope_parameters": full}), theta)?,
            Rope::from_config(&serde_json::json!({"rope_parameters": sliding}), theta)?,
        ),
        _ => {
            let local = number(config, "rope_local_base_freq", 10_000.)?;
            let full = number(config, "rope_theta", 1_000_000.)?;
            let scaling = config.get("rope_scaling").cloned().unwrap_or(Value::Null);
            let full = serde_json::json!({"rope_theta": full, "rope_scaling": scaling});
            (
                Rope::from_config(&full, theta)?,
                Rope::from_config(&serde_json::json!({"rope_theta": local}), theta)?,
            )
        }
    };
    let layers = windows.iter().map(|window| Some(usize::from(window.is_some())));
    Ok((vec![full, sliding], layers.collect()))
}
