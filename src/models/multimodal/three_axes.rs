//! The language model of Qwen3-VL: a Qwen3 whose pairs of dimensions are turned by positions on three axes in turn.

use serde_json::{Map, Value};

use crate::error::{refuse, Result};
use crate::models::decoder::DecoderConfig;

/// Pairs by axis where the configuration does not say.
const SECTION: [i64; 3] = [24, 20, 20];

/// Reads the language model's configuration.
pub(super) fn read(settings: &Value) -> Result<DecoderConfig> {
    let mut config = settings.clone();
    config["model_type"] = "qwen3".into();
    config["use_sliding_window"] = false.into();
    let mut section = SECTION;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(Value::Object(rope)) = config.get_mut(key) else { continue };
        section = own_section(rope)?.unwrap_or(section);
        rope.remove("mrope_interleaved");
    }
    for (key, default) in [("rope_theta", 500_000), ("max_position_embeddings", 128_000)] {
        if config.get(key).is_none_or(Value::is_null) {
            config[key] = default.into();
        }
    }
    let [_, rows, columns] = section;
    let axis = |pair: i64| match pair % 3 {
        1 if pair < 3 * rows => 1,
        2 if pair < 3 * columns => 2,
        _ => 0,
    };
    Ok(DecoderConfig::of_part(&config)?.with_axes(axis))
}

fn own_section(rope: &mut Map<String, Value>) -> Result<Option<[i64; 3]>> {
    let Some(given) = rope.remove("mrope_section") else { return Ok(None) };
    let read: Vec<i64> = given.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
    match read[..] {
        [frames, rows, columns] if read.iter().all(|count| (0..1 << 20).contains(count)) => {
            Ok(Some([frames, rows, columns]))
        }
        _ => refuse!(InvalidConfig, "'mrope_section' is {given}, expected three numbers of pairs"),
    }
}
