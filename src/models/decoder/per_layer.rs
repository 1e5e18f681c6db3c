//! Windows, and the layers that turn queries and keys: settings that may differ from layer to layer.

use serde_json::Value;

use super::family::{Family, Windows};
use crate::error::{refuse, Result};
use crate::models::config::{flag, integer, integer_or};

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
    let types = config.get("layer_types").and_then(Value::as_array);
    let habit = |layer: i64| -> Result<bool> {
        Ok(match family.windows {
            Windows::None | Windows::All => true,
            Windows::Alternating => layer % 2 == 0,
            Windows::Pattern => match integer_or(config, "sliding_window_pattern", 6)? {
                pattern @ 1.. => (layer + 1) % pattern != 0,
                other => {
                    refuse!(
                        InvalidConfig,
                        "'sliding_window_pattern' is {other}, expected a number above 0"
                    )
                }
            },
            Windows::From => layer >= integer_or(config, "max_window_layers", 28)?,
            Windows::WithoutRope => !turned(config, layer)?,
        })
    };
    (0..layers)
        .map(|layer| {
            let listed = types.and_then(|types| types.get(layer as usize)?.as_str());
            let slides = match listed {
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                Some(other) => {
                    refuse!(Unsupported, "'layer_types' holds '{other}', expected full_attention or sliding_attention")
                }
                None => habit(layer)?,
            };
            Ok(window.filter(|_| slides))
        })
        .collect()
}

/// SmolLM3 turns queries and keys in some layers only.
pub(super) fn turned(config: &Value, layer: i64) -> Result<bool> {
    match config.get("no_rope_layers").and_then(Value::as_array) {
        // Despite the name, 1 stands for layers with rope.
        Some(layers) => Ok(layers.get(layer as usize).and_then(Value::as_i64) != Some(0)),
        None => Ok((layer + 1) % integer_or(config, "no_rope_layer_interval", 4)?.max(1) != 0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, Value};

    use crate::models::decoder::DecoderConfig;
    use crate::models::ModelConfig;

    #[test]
    fn a_window_that_is_not_given_is_that_of_transformers_and_null_is_none() {
        let windows = |model_type: &str, more: Value| {
            let mut config = json!({
                "model_type": model_type, "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16,
                "num_hidden_layers": 2, "num_attention_heads": 2,
            });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            DecoderConfig::from_value(&config).unwrap().windows
        };
        let (none, given) = (json!({}), json!({"sliding_window": 7}));
        for (model_type, default) in
            [("mistral", [Some(4096); 2]), ("gemma2", [Some(4096), None]), ("llama", [None; 2])]
        {
            assert_eq!(windows(model_type, none.clone()), default, "{model_type}");
            assert_eq!(windows(model_type, json!({"sliding_window": null})), [None; 2]);
            let expected = default.map(|window| window.map(|_| 7));
            assert_eq!(windows(model_type, given.clone()), expected, "{model_type}");
        }
        let used = json!({"use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(windows("qwen2", used), [None, Some(4096)]);
        assert_eq!(windows("qwen3", none), [None; 2]);
    }
}
