//! The language models of Qwen2.5-VL and Qwen3-VL: a Qwen2 and a Qwen3 whose pairs of dimensions are turned by positions
//! on three axes.

use serde_json::{Map, Value};

use crate::error::{refuse, Result};
use crate::models::decoder::DecoderConfig;

/// The numbers of one version, which the other has differently.
struct Version {
    text: &'static str,
    /// Pairs by axis where the configuration does not say.
    section: [i64; 3],
    /// Pairs of the axes take turns, rather than standing one axis behind the other.
    in_turn: bool,
    defaults: &'static [(&'static str, f64)],
}

const QWEN2_5: Version = Version {
    text: "qwen2",
    section: [16, 24, 24],
    in_turn: false,
    defaults: &[("rope_theta", 1e6), ("rms_norm_eps", 1e-5)],
};

const QWEN3: Version = Version {
    text: "qwen3",
    section: [24, 20, 20],
    in_turn: true,
    defaults: &[("rope_theta", 5e5)],
};

/// Reads the language model's configuration.
pub(super) fn read(settings: &Value) -> Result<DecoderConfig> {
    let mut config = settings.clone();
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let version = if model_type.starts_with("qwen2_5_vl") { QWEN2_5 } else { QWEN3 };
    config["model_type"] = version.text.into();
    if version.in_turn {
        config["use_sliding_window"] = false.into();
    }
    let mut section = version.section;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(Value::Object(rope)) = config.get_mut(key) else { continue };
        section = own_section(rope)?.unwrap_or(section);
        rope.remove("mrope_interleaved");
        // The former name of positions on three axes.
        for key in ["rope_type", "type"] {
            if let Some(name) = rope.get_mut(key).filter(|name| **name == "mrope") {
                *name = "default".into();
            }
        }
    }
    let missing = |config: &Value, key: &str| config.get(key).is_none_or(Value::is_null);
    for (key, default) in version.defaults {
        if missing(&config, key) {
            config[*key] = (*default).into();
        }
    }
    if missing(&config, "max_position_embeddings") {
        config["max_position_embeddings"] = if version.in_turn { 128_000 } else { 32_768 }.into();
    }
    let [frames, rows, columns] = section;
    let axis = |pair: i64| match pair % 3 {
        1 if version.in_turn && pair < 3 * rows => 1,
        2 if version.in_turn && pair < 3 * columns => 2,
        _ if version.in_turn || pair < frames => 0,
        _ if pair < frames + rows => 1,
        _ => 2,
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
