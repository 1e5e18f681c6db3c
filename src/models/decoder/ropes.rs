//! The ropes of a model from its `config.json`: `rope_parameters` of transformers 5, `rope_scaling` of before.

use serde_json::{json, Value};

use super::config::DecoderConfig;
use super::family::{Family, Ropes, Rotary};
use super::per_layer::turned;
use super::rope_types::{type_name, RopeSettings};
use crate::error::{refuse, Result};
use crate::models::config::{check_sizes, integer, not_implemented, number, optional_number};
use crate::models::nn::{Beyond, Rope};

/// Fills in the ropes, and per layer the place of its own among them. The sizes are read already.
pub(super) fn ropes(read: &mut DecoderConfig, config: &Value, family: &Family) -> Result<()> {
    check_sizes(&[("max_position_embeddings", read.max_positions)])?;
    if family.ropes == Ropes::ByWindow {
        let [full, sliding] = by_window(config)?;
        let theta = |key: &str, default: f64| number(config, key, default);
        let full = Source {
            theta: theta("rope_theta", family.keys.theta.1)?,
            ..Source::nested("full_attention", &full)
        };
        let sliding = Source {
            theta: theta("rope_local_base_freq", 10_000.)?,
            ..Source::nested("sliding_attention", &sliding)
        };
        read.ropes = vec![full.rope(read, config, family)?, sliding.rope(read, config, family)?];
        let layers = read.windows.iter().map(|window| Some(usize::from(window.is_some())));
        read.layer_ropes = layers.collect();
        return Ok(());
    }
    let (place, values) = parameters(config)?.unwrap_or(("rope_parameters", json!({})));
    let theta = number(config, family.keys.theta.0, family.keys.theta.1)?;
    let source = Source { place: place.into(), values: &values, theta, nested: false };
    let rope = source.rope(read, config, family)?;
    if let (Ropes::Long, Beyond::Others { length, .. }) = (family.ropes, &rope.beyond) {
        read.kept_places = Some(*length as i64);
    }
    read.ropes = vec![rope];
    let layers = (0..read.layers).map(|layer| {
        let used = family.ropes != Ropes::Some || turned(config, layer)?;
        Ok(used.then_some(0))
    });
    read.layer_ropes = layers.collect::<Result<_>>()?;
    Ok(())
}

/// The name and the object of the key that counts: `rope_scaling` goes before `rope_parameters`.
fn parameters(config: &Value) -> Result<Option<(&'static str, Value)>> {
    let empty = [json!(null), json!(false), json!({}), json!([])];
    for key in ["rope_scaling", "rope_parameters"] {
        match config.get(key) {
            Some(value) if !empty.contains(value) => {
                if !value.is_object() {
                    refuse!(InvalidConfig, "'{key}' is {value}, expected an object");
                }
                return Ok(Some((key, value.clone())));
            }
            _ => (),
        }
    }
    Ok(None)
}

/// Gemma 3: the parameters of layers that see all, and of those with a window.
fn by_window(config: &Value) -> Result<[Value; 2]> {
    let names = ["full_attention", "sliding_attention"];
    let [mut full, sliding] = match config.get("rope_parameters") {
        None | Some(Value::Null) => [json!({}), json!({})],
        Some(given) => {
            let keys = given.as_object().into_iter().flat_map(|given| given.keys());
            if !given.is_object() || keys.into_iter().any(|key| !names.contains(&key.as_str())) {
                refuse!(
                    InvalidConfig,
                    "'rope_parameters' is {given}, expected objects for full_attention and sliding_attention"
                );
            }
            names.map(|name| given.get(name).filter(|v| !v.is_null()).cloned().unwrap_or(json!({})))
        }
    };
    match (config.get("rope_scaling"), full.as_object_mut()) {
        (None | Some(Value::Null), _) | (_, None) => (),
        (Some(Value::Object(scaling)), Some(full)) => {
            // As transformers has it: a `type` of before is not looked at here.
            full.entry("rope_type").or_insert("default".into());
            full.extend(scaling.clone());
        }
        (Some(other), _) => {
            refuse!(InvalidConfig, "'rope_scaling' is {other}, expected an object")
        }
    }
    Ok([full, sliding])
}

/// The parameters of one rope, where they stand, and its `rope_theta` if they hold none.
struct Source<'a> {
    place: String,
    values: &'a Value,
    theta: f64,
    nested: bool,
}

impl<'a> Source<'a> {
    fn nested(name: &str, values: &'a Value) -> Self {
        Source { place: format!("rope_parameters.{name}"), values, theta: 0., nested: true }
    }

    fn rope(&self, read: &DecoderConfig, config: &Value, family: &Family) -> Result<Rope> {
        let Source { place, values, .. } = self;
        let Some(object) = values.as_object() else {
            refuse!(InvalidConfig, "'{place}' is {values}, expected an object");
        };
        if let Some((key, _)) = object.iter().find(|(_, value)| value.is_object()) {
            refuse!(
                InvalidConfig,
                "'{place}' holds an object '{key}', expected the settings of one rope: {} has one for all layers",
                family.model_type
            );
        }
        let mut name = type_name(values, place)?;
        let mut original = if self.nested {
            None
        } else {
            optional_number(config, "original_max_position_embeddings")?
        };
        if family.ropes == Ropes::Long {
            original = original.or(Some(family.keys.max_positions as f64));
            name = match name {
                // Its names of before.
                "su" | "yarn" | "longrope" => "longrope",
                "default" => "default",
                other => {
                    return not_implemented(&format!(
                        "'{place}' of rope_type '{other}' for {}",
                        family.model_type
                    ))
                }
            };
        }
        if original.is_some_and(|positions| positions < 2.) {
            refuse!(
                InvalidConfig,
                "'original_max_position_embeddings' is too small, expected 2 positions or more"
            );
        }
        let (key, default) = match family.rotary {
            Rotary::Part(key, default) => (key, default),
            _ => ("partial_rotary_factor", 1.),
        };
        let part = match optional_number(values, "partial_rotary_factor")? {
            Some(part) => part,
            None => number(config, key, default)?,
        };
        let dims = match family.rotary {
            Rotary::Dims(_) if !object.is_empty() => {
                return not_implemented(&format!("'{place}' for {}", family.model_type));
            }
            Rotary::Dims(key) => integer(config, key)?,
            // transformers turns all of a head by the default, whatever the part, and fails with others.
            Rotary::All if name == "default" => read.head_dim,
            Rotary::All if part != 1. && name != "proportional" => {
                return not_implemented(&format!(
                    "'partial_rotary_factor': {part} with rope_type '{name}' for {}",
                    family.model_type
                ));
            }
            _ => (read.head_dim as f64 * part) as i64,
        };
        let settings = RopeSettings {
            values,
            place,
            theta: optional_number(values, "rope_theta")?.unwrap_or(self.theta),
            head_dim: read.head_dim,
            dims,
            part,
            max_positions: read.max_positions as f64,
            original,
            nested: self.nested,
        };
        settings.rope(name)
    }
}
