//! Windows, and the layers that turn queries and keys: settings that may differ from layer to layer.

use serde_json::Value;

use super::family::{Family, Windows};
use crate::error::{refuse, Result};
use crate::models::config::{flag, integer, integer_or, size_or};

/// Per layer, how many places it sees: by `layer_types` where it stands, else by the family's habit.
pub(super) fn windows(config: &Value, family: &Family, layers: i64) -> Result<Vec<Option<i64>>> {
    let used = match family.windows {
        Windows::None => false,
        Windows::From | Windows::WithoutRope => flag(config, "use_sliding_window", false)?,
        Windows::All | Windows::Alternating | Windows::Pattern => true,
    };
    let window = match config.get("sliding_window") {
        Some(value) if used && !value.is_null() => Some(integer(config, "sliding_window")?),
        None if used => family.keys.window,
        _ => None,
    };
    if let Some(places @ ..=0) = window {
        refuse!(InvalidConfig, "'sliding_window' is {places}, expected a number above 0");
    }
    let known = |kind: &&Value| **kind == "sliding_attention" || **kind == "full_attention";
    let types = config.get("layer_types").and_then(Value::as_array);
    if let Some(other) = types.into_iter().flatten().find(|kind| !known(kind)) {
        refuse!(
            Unsupported,
            "'layer_types' holds {other}, expected full_attention or sliding_attention"
        );
    }
    let types = listed(config, "layer_types", layers)?;
    listed(config, "no_rope_layers", layers)?;
    let habit = |layer: i64| -> Result<bool> {
        Ok(match family.windows {
            Windows::None | Windows::All => true,
            Windows::Alternating => layer % 2 == 0,
            Windows::Pattern => (layer + 1) % size_or(config, "sliding_window_pattern", 6)? != 0,
            Windows::From => layer >= integer_or(config, "max_window_layers", 28)?,
            Windows::WithoutRope => !turned(config, layer)?,
        })
    };
    (0..layers)
        .map(|layer| {
            let slides = match types {
                Some(types) => types[layer as usize] == "sliding_attention",
                None => habit(layer)?,
            };
            Ok(window.filter(|_| slides))
        })
        .collect()
}

/// A list with an entry for each layer, if it is there.
fn listed<'c>(config: &'c Value, key: &str, layers: i64) -> Result<Option<&'c Vec<Value>>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) if list.len() as i64 >= layers => Ok(Some(list)),
        Some(Value::Array(list)) => refuse!(
            InvalidConfig,
            "'{key}' has {} entries, expected one for each of {layers} layers",
            list.len()
        ),
        Some(other) => refuse!(InvalidConfig, "'{key}' is {other}, expected a list"),
    }
}

/// SmolLM3 turns queries and keys in some layers only.
pub(super) fn turned(config: &Value, layer: i64) -> Result<bool> {
    match config.get("no_rope_layers").and_then(Value::as_array) {
        // Despite the name, 1 stands for layers with rope.
        Some(layers) => Ok(layers.get(layer as usize).and_then(Value::as_i64) != Some(0)),
        None => Ok((layer + 1) % size_or(config, "no_rope_layer_interval", 4)? != 0),
    }
}
