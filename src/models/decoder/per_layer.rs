//! Settings that may differ from layer to layer: windows and ropes.

use serde_json::{json, Value};

use super::family::{Family, Ropes, Windows};
use crate::error::{refuse, Result};
use crate::models::config::{flag, integer, integer_or, number, size_or};
use crate::models::nn::Rope;

/// Per layer, how many places it sees: by `layer_types` where it stands, else by the family's habit.
pub(super) fn windows(config: &Value, family: &Family, layers: i64) -> Result<Vec<Option<i64>>> {
    let used = match family.windows {
        Windows::None => false,
        Windows::From | Windows::WithoutRope => flag(config, "use_sliding_window", false)?,
        Windows::All | Windows::Alternating | Windows::Pattern => true,
    };
    let window = match config.get("sliding_window") {
        Some(value) if used && !value.is_null() => Some(integer(config, "sliding_window")?),
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
fn turned(config: &Value, layer: i64) -> Result<bool> {
    match config.get("no_rope_layers").and_then(Value::as_array) {
        // Despite the name, 1 stands for layers with rope.
        Some(layers) => Ok(layers.get(layer as usize).and_then(Value::as_i64) != Some(0)),
        None => Ok((layer + 1) % size_or(config, "no_rope_layer_interval", 4)? != 0),
    }
}

/// The ropes of a model, and per layer the place of its own among them.
pub(super) fn ropes(
    config: &Value,
    family: &Family,
    windows: &[Option<i64>],
) -> Result<(Vec<Rope>, Vec<Option<usize>>)> {
    let theta = family.keys.theta;
    if family.ropes != Ropes::ByWindow {
        let layers = (0..windows.len() as i64).map(|layer| {
            let used = family.ropes == Ropes::One || turned(config, layer)?;
            Ok(used.then_some(0))
        });
        return Ok((vec![Rope::from_config(config, theta)?], layers.collect::<Result<_>>()?));
    }
    let nested = |key: &str| config.get("rope_parameters").and_then(|rope| rope.get(key));
    let (full, sliding) = match (nested("full_attention"), nested("sliding_attention")) {
        (Some(full), Some(sliding)) => {
            (json!({"rope_parameters": full}), json!({"rope_parameters": sliding}))
        }
        _ => {
            let local = number(config, "rope_local_base_freq", 10_000.)?;
            let full = number(config, "rope_theta", 1_000_000.)?;
            let scaling = config.get("rope_scaling").cloned().unwrap_or(Value::Null);
            (json!({"rope_theta": full, "rope_scaling": scaling}), json!({"rope_theta": local}))
        }
    };
    let ropes = [full, sliding].map(|rope| Rope::from_config(&rope, theta));
    let layers = windows.iter().map(|window| Some(usize::from(window.is_some())));
    Ok((ropes.into_iter().collect::<Result<_>>()?, layers.collect()))
}
