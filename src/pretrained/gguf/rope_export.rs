//! The rope of a configuration as a GGUF file has it: the way back of `rope.rs`.

use serde_json::Value;

use super::rope::{slowed_by, Llama3};
use crate::storage::gguf::MetadataValue;

/// A key of the configuration that stands in the way: its name, its value, what is expected.
pub(super) type Hindrance = (String, String, String);

/// The part of a file that is about the rope.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Exported {
    /// Below the architecture.
    pub(super) metadata: Vec<(&'static str, MetadataValue)>,
    /// The values of `rope_freqs.weight`, which divide the frequencies.
    pub(super) factors: Option<Vec<f32>>,
}

/// The types that have a place in a file. Factors are read by llama.cpp for its architecture llama alone.
const KNOWN: &str = "default, linear, yarn, or llama3 for llama and mistral";

/// The rope of a configuration whose heads have `dims` dimensions, all of them turned.
pub(super) fn exported(
    config: &Value,
    dims: i64,
    positions: i64,
    takes_factors: bool,
) -> Result<Exported, Hindrance> {
    let of = |key: &str| config.get(key).filter(|value| value.is_object());
    let rope = Settings(of("rope_parameters").or(of("rope_scaling")).unwrap_or(&Value::Null));
    let outside = Settings(config);
    let name = match rope.get("rope_type").or(rope.get("type")) {
        None => "default",
        Some(name) => name.as_str().unwrap_or_default(),
    };
    for settings in [&rope, &outside] {
        if let Some(part) = settings.number("partial_rotary_factor")?.filter(|part| *part != 1.) {
            return hindered("partial_rotary_factor", part, "1");
        }
    }
    let theta = rope.number("rope_theta")?.or(outside.number("rope_theta")?).unwrap_or(10_000.);
    let original = outside.number(ORIGINAL)?.or(rope.number(ORIGINAL)?);
    let original = original.unwrap_or(positions as f64);
    let mut found = Exported::default();
    let mut set = |key, value: f64| found.metadata.push((key, MetadataValue::F32(value as f32)));
    set("rope.freq_base", theta);
    match name {
        "default" => (),
        "linear" => {
            set("rope.scaling.factor", rope.factor()?);
            found.metadata.push(("rope.scaling.type", "linear".into()));
        }
        "yarn" => {
            let factor = match rope.0.get("factor") {
                Some(Value::Null) => positions as f64 / original,
                _ => rope.factor()?,
            };
            if rope.get("truncate") == Some(&Value::Bool(false)) {
                return hindered("truncate", false, "true");
            }
            set("rope.scaling.factor", factor);
            // llama.cpp computes the second one itself.
            let (attention, usual) = (rope.attention(factor)?, grown(factor, 1.));
            if attention != usual {
                set("rope.scaling.attn_factor", attention / usual);
            }
            // llama.cpp does not look for others in files of these architectures.
            for (key, usual) in [("beta_fast", 32.), ("beta_slow", 1.)] {
                let other = rope.number(key)?.filter(|beta| *beta != 0. && *beta != usual);
                if let Some(beta) = other {
                    return hindered(key, beta, &usual.to_string());
                }
            }
            found.metadata.push(("rope.scaling.type", "yarn".into()));
            if original.fract() != 0. || !(1. ..4e9).contains(&original) {
                return hindered(ORIGINAL, original, "a whole number of positions");
            }
            let original = MetadataValue::U32(original as u32);
            found.metadata.push(("rope.scaling.original_context_length", original));
        }
        "llama3" if takes_factors => {
            let needed = |key: &str| match rope.number(key)? {
                Some(number) if number > 0. => Ok(number),
                _ => hindered(key, "missing or 0", "a number above 0"),
            };
            let llama3 = Llama3 {
                factor: rope.factor()?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original,
            };
            let pairs = dims as usize / 2;
            let factors =
                (0..pairs).map(|pair| slowed_by(&llama3, theta, pair, pairs) as f32).collect();
            found.factors = Some(factors);
        }
        other => return hindered("rope_type", other, KNOWN),
    }
    Ok(found)
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn hindered<T>(key: &str, found: impl ToString, expected: &str) -> Result<T, Hindrance> {
    Err((key.to_owned(), found.to_string(), expected.to_owned()))
}

/// The factor of attention that a rope stretched by `factor` has.
fn grown(factor: f64, by: f64) -> f64 {
    if factor <= 1. {
        1.
    } else {
        0.1 * by * factor.ln() + 1.
    }
}

struct Settings<'c>(&'c Value);

impl<'c> Settings<'c> {
    fn get(&self, key: &str) -> Option<&'c Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Hindrance> {
        match self.get(key) {
            Some(value) if value.as_f64().is_none() => hindered(key, value, "a number"),
            value => Ok(value.and_then(Value::as_f64)),
        }
    }

    fn factor(&self) -> Result<f64, Hindrance> {
        match self.number("factor")? {
            Some(factor) if factor >= 1. => Ok(factor),
            Some(factor) => hindered("factor", factor, "a number of 1 or more"),
            None => hindered("factor", "missing", "a number of 1 or more"),
        }
    }

    /// The factor of attention of YaRN, as transformers finds it.
    fn attention(&self, factor: f64) -> Result<f64, Hindrance> {
        let given = |key: &str| -> Result<Option<f64>, Hindrance> {
            Ok(self.number(key)?.filter(|number| *number != 0.))
        };
        Ok(match (self.number("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
            (Some(own), ..) => own,
            (None, Some(scale), Some(all)) => grown(factor, scale) / grown(factor, all),
            _ => grown(factor, 1.),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(rope: Value) -> Result<Exported, Hindrance> {
        exported(&json!({"rope_parameters": rope}), 8, 128, true)
    }

    #[test]
    fn a_rope_that_a_file_cannot_say_is_refused_by_its_key() {
        for (rope, key, expected) in [
            (json!({"rope_type": "dynamic", "factor": 2.}), "rope_type", "linear, yarn, or llama3"),
            (json!({"rope_type": 1}), "rope_type", "default"),
            (json!({"rope_type": "linear"}), "factor", "a number of 1 or more"),
            (json!({"rope_type": "yarn", "factor": 0.5}), "factor", "a number of 1 or more"),
            (json!({"rope_type": "yarn", "factor": 2, "truncate": false}), "truncate", "true"),
            (json!({"rope_type": "yarn", "factor": 2, "beta_fast": 16}), "beta_fast", "32"),
            (json!({"rope_type": "yarn", "factor": 2, "beta_slow": 2.}), "beta_slow", "1"),
            (json!({"rope_type": "llama3", "factor": 2}), "low_freq_factor", "above 0"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor", "1"),
            (json!({"rope_theta": "1"}), "rope_theta", "a number"),
        ] {
            let (found, _, words) = of(rope.clone()).unwrap_err();
            assert!(found == key && words.contains(expected), "{rope}: {found}: {words}");
        }
        let llama3 = json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4});
        assert!(of(llama3.clone()).is_ok());
        let config = json!({"rope_parameters": llama3});
        assert_eq!(exported(&config, 8, 128, false).unwrap_err().0, "rope_type");
    }

    #[test]
    fn the_factor_of_attention_is_written_where_it_is_not_the_usual_one() {
        let keys = |rope: Value| {
            let found = of(rope).unwrap();
            found.metadata.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let usual = json!({"rope_type": "yarn", "factor": 4., "attention_factor": null});
        assert!(!keys(usual).contains(&"rope.scaling.attn_factor"));
        for other in [
            json!({"rope_type": "yarn", "factor": 4., "attention_factor": 1.}),
            json!({"rope_type": "yarn", "factor": 4., "mscale": 1., "mscale_all_dim": 0.5}),
        ] {
            assert!(keys(other).contains(&"rope.scaling.attn_factor"));
        }
    }
}
