//! The types of rope (`rope_type`), a row each, with the numbers of transformers.

use std::f64::consts::PI;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::device::trace::sent_numbers;
use crate::error::{refusal, refuse, Result};
use crate::kernels::number::{self, WithNumber};
use crate::models::config::flag;
use crate::models::nn::{powers, Beyond, Rope};

/// The settings of one rope.
pub(super) struct RopeSettings<'a> {
    /// The object of the file.
    pub(super) values: &'a Value,
    /// Its place in the file, for messages.
    pub(super) place: &'a str,
    pub(super) theta: f64,
    pub(super) head_dim: i64,
    /// The number of dimensions of a head that are turned.
    pub(super) dims: i64,
    /// `partial_rotary_factor`
    pub(super) part: f64,
    /// `max_position_embeddings`
    pub(super) max_positions: f64,
    /// The file's `original_max_position_embeddings`, if it stands outside of the object.
    pub(super) original: Option<f64>,
    /// The settings of one of several ropes.
    pub(super) nested: bool,
}

struct RopeType {
    name: &'static str,
    /// Those that change something.
    keys: &'static [&'static str],
    rope: fn(&RopeSettings) -> Result<Rope>,
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// The keys of all types.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

const TYPES: [RopeType; 7] = [
    RopeType { name: "default", keys: &[], rope: |s| Rope::new(&s.inverse()?) },
    RopeType {
        name: "linear",
        keys: &["factor"],
        rope: |s| Rope::new(&s.inverse()?.f_div_number(s.factor()?)?),
    },
    RopeType { name: "dynamic", keys: &["factor"], rope: dynamic },
    RopeType {
        name: "yarn",
        keys: &[
            "factor",
            ORIGINAL,
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        rope: yarn,
    },
    RopeType {
        name: "longrope",
        keys: &["factor", ORIGINAL, "attention_factor", "short_factor", "long_factor"],
        rope: longrope,
    },
    RopeType {
        name: "llama3",
        keys: &["factor", ORIGINAL, "low_freq_factor", "high_freq_factor"],
        rope: llama3,
    },
    RopeType { name: "proportional", keys: &["factor"], rope: proportional },
];

/// The name of the type: `rope_type`, or `type` as it was called before.
pub(super) fn type_name<'a>(values: &'a Value, place: &str) -> Result<&'a str> {
    match values.get("rope_type").or(values.get("type")) {
        None => Ok("default"),
        Some(Value::String(name)) => Ok(name),
        Some(other) => refuse!(InvalidConfig, "'{place}': 'rope_type' is {other}, expected a name"),
    }
}

/// The square of it leaves f32 room for the scores.
const MOST_ATTENTION_FACTOR: f64 = 1e9;

impl RopeSettings<'_> {
    /// The rope of the type with this name. Keys that it does not use are reported.
    pub(super) fn rope(&self, name: &str) -> Result<Rope> {
        let Some(found) = TYPES.iter().find(|found| found.name == name) else {
            let names = TYPES.map(|known| known.name).join(", ");
            refuse!(
                Unsupported,
                "'{}': 'rope_type' is '{name}', expected one of {names}",
                self.place
            );
        };
        if !(self.theta > 0. && self.theta.is_finite()) {
            refuse!(
                InvalidConfig,
                "'{}': 'rope_theta' is {}, expected a number above 0",
                self.place,
                self.theta
            );
        }
        let dims = if name == "proportional" { self.head_dim } else { self.dims };
        if !(2..=self.head_dim.min(1 << 16)).contains(&dims) || dims % 2 != 0 {
            refuse!(
                InvalidConfig,
                "{dims} dimensions of a head of {} are turned, expected an even number above 0 and up to 65536",
                self.head_dim
            );
        }
        let rope = (found.rope)(self)?;
        if !(0. ..=MOST_ATTENTION_FACTOR).contains(&rope.attention_factor) {
            refuse!(
                InvalidConfig,
                "'{}': the factor of attention is {:e} ('attention_factor', or 'mscale'), expected {MOST_ATTENTION_FACTOR:e} \
                 at most: scores grow with its square, and would be no numbers",
                self.place,
                rope.attention_factor
            );
        }
        let keys = self.values.as_object().into_iter().flat_map(|values| values.keys());
        let is_used = |key: &str| match key {
            "truncate" if self.nested => false,
            _ => COMMON.contains(&key) || found.keys.contains(&key),
        };
        let mut unused: Vec<&str> = keys.map(String::as_str).filter(|key| !is_used(key)).collect();
        if name == "default" && self.part != 1. && self.dims == self.head_dim {
            unused.push("partial_rotary_factor");
        }
        if !unused.is_empty() {
            eprintln!(
                "warning: '{}' of rope_type '{name}' has no use for {}: ignored, as in transformers",
                self.place,
                unused.join(", ")
            );
        }
        Ok(rope)
    }

    fn inverse(&self) -> Result<Tensor> {
        Ok(powers(self.theta, self.dims)?.f_reciprocal()?)
    }

    /// A number of `least` or more; none where the key is not there or null.
    fn number(&self, key: &str, least: f64) -> Result<Option<f64>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|number| *number >= least) {
                Some(number) => Ok(Some(number)),
                None => refuse!(
                    InvalidConfig,
                    "'{}': '{key}' is {value}, expected a number of {least} or more",
                    self.place
                ),
            },
        }
    }

    fn needed(&self, key: &str, least: f64) -> Result<f64> {
        self.number(key, least)?
            .ok_or_else(|| refusal!(InvalidConfig, "'{}': '{key}' is missing", self.place))
    }

    fn factor(&self) -> Result<f64> {
        self.needed("factor", 1.)
    }

    /// The number of positions that the model was trained for before it was stretched.
    fn original(&self) -> Result<f64> {
        match self.original {
            Some(outside) => Ok(outside),
            None => Ok(self.number(ORIGINAL, 2.)?.unwrap_or(self.max_positions)),
        }
    }
}

fn dynamic(s: &RopeSettings) -> Result<Rope> {
    let factor = s.factor()?;
    if s.dims == 2 {
        refuse!(
            InvalidConfig,
            "'{}': rope_type 'dynamic' with 2 dimensions, expected 4 or more",
            s.place
        );
    }
    let beyond = Beyond::Lower { length: s.max_positions, theta: s.theta, factor };
    Ok(Rope { beyond, ..Rope::new(&s.inverse()?)? })
}

/// Long waves are slowed down, short ones left, those between blended (arXiv 2309.00071).
fn yarn(s: &RopeSettings) -> Result<Rope> {
    let (dims, original) = (s.dims as f64, s.original()?);
    // A factor of null says: as much as the file's positions have grown.
    let factor = match s.values.get("factor") {
        Some(Value::Null) => s.max_positions / original,
        _ => s.factor()?,
    };
    // 0 counts as not given.
    let given = |key: &str| -> Result<Option<f64>> {
        Ok(s.number(key, 0.)?.filter(|number| *number != 0.))
    };
    let fast = given("beta_fast")?.unwrap_or(32.);
    let slow = given("beta_slow")?.unwrap_or(1.);
    if fast < slow {
        refuse!(
            InvalidConfig,
            "'{}': 'beta_fast' is {fast} and 'beta_slow' is {slow}, expected the first to be larger",
            s.place
        );
    }
    if s.theta == 1. {
        refuse!(InvalidConfig, "'{}': 'rope_theta' is 1, expected another number", s.place);
    }
    let grown = |by: f64| if factor <= 1. { 1. } else { 0.1 * by * factor.ln() + 1. };
    let attention_factor =
        match (s.number("attention_factor", 0.)?, given("mscale")?, given("mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(scale), Some(all)) => grown(scale) / grown(all),
            _ => grown(1.),
        };
    // The place of the wave that turns this often within the original length.
    let place = |turns: f64| dims * (original / (turns * 2. * PI)).ln() / (2. * s.theta.ln());
    let (mut low, mut high) = (place(fast), place(slow));
    // transformers looks for it where a rope of several has it not.
    if s.nested || flag(s.values, "truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.), high.min(dims - 1.));
    if low == high {
        high += 0.001;
    }
    let ramp = number::arange(0, s.dims / 2, tch::Device::Cpu)?.f_to_kind(Kind::Float)?;
    let ramp = ramp.f_sub_number(low)?.f_div_number(high - low)?.f_bound(0., 1.)?;
    let kept = ramp.f_neg()?.f_add_number(1.)?;
    let slowed = kept.f_neg()?.f_add_number(1.)?;
    let powers = powers(s.theta, s.dims)?;
    let (fast, slow) = (powers.f_reciprocal()?, powers.f_mul_number(factor)?.f_reciprocal()?);
    let frequencies = slow.f_mul(&slowed)?.f_add(&fast.f_mul(&kept)?)?;
    Ok(Rope { attention_factor, ..Rope::new(&frequencies)? })
}

/// A factor per pair of dimensions, others for long sequences (arXiv 2402.13753).
fn longrope(s: &RopeSettings) -> Result<Rope> {
    let original = s.original()?;
    let factor = s.number("factor", 1.)?.unwrap_or(s.max_positions / original);
    let attention_factor = match s.number("attention_factor", 0.)? {
        Some(given) => given,
        None if factor <= 1. => 1.,
        None => (1. + factor.ln() / original.ln()).sqrt(),
    };
    let powers = powers(s.theta, s.dims)?;
    let pairs = s.dims as usize / 2;
    let frequencies = |key: &str| -> Result<Tensor> {
        let given = s.values.get(key).unwrap_or(&Value::Null);
        let list = given.as_array().map(Vec::as_slice).unwrap_or_default();
        let factors: Vec<f32> =
            list.iter().filter_map(|x| Some(x.as_f64()? as f32).filter(|x| *x > 0.)).collect();
        if factors.len() != pairs || list.len() != pairs {
            refuse!(
                InvalidConfig,
                "'{}': '{key}' is {}, expected a list of {pairs} numbers above 0, one for each pair of dimensions",
                s.place,
                shown(given)
            );
        }
        Ok(sent_numbers(&factors, Device::Cpu)?.f_mul(&powers)?.f_reciprocal()?)
    };
    let long = Vec::try_from(frequencies("long_factor")?)?;
    let beyond = Beyond::Others { length: original, frequencies: long };
    Ok(Rope { attention_factor, beyond, ..Rope::new(&frequencies("short_factor")?)? })
}

/// Long waves are slowed down, short ones left, those between blended (Llama 3.1).
fn llama3(s: &RopeSettings) -> Result<Rope> {
    let (factor, original) = (s.factor()?, s.original()?);
    let (low, high) = (s.needed("low_freq_factor", 0.)?, s.needed("high_freq_factor", 0.)?);
    if low >= high || low == 0. {
        refuse!(
            InvalidConfig,
            "'{}': 'low_freq_factor' is {low} and 'high_freq_factor' is {high}, expected the first to be above 0 and \
             below the second",
            s.place
        );
    }
    let own = s.inverse()?;
    let wave = own.f_reciprocal()?.f_mul_number(2. * PI)?;
    let (long, short) = (wave.f_gt_number(original / low)?, wave.f_lt_number(original / high)?);
    let slowed = own.f_div_number(factor)?;
    let blend = wave.f_reciprocal()?.f_mul_number(original)?.f_sub_number(low)?;
    let blend = blend.f_div_number(high - low)?;
    let rest = blend.f_neg()?.f_add_number(1.)?;
    let blended = rest.f_mul(&own)?.f_div_number(factor)?.f_add(&blend.f_mul(&own)?)?;
    Rope::new(&own.f_where_self(&short, &slowed.f_where_self(&long, &blended)?)?)
}

/// All of a head has a place in the table, and the rest of it turns by nothing (Gemma 4).
fn proportional(s: &RopeSettings) -> Result<Rope> {
    let factor = s.number("factor", 0.)?.unwrap_or(1.);
    if factor == 0. {
        refuse!(InvalidConfig, "'{}': 'factor' is 0, expected a number above 0", s.place);
    }
    let turned = ((s.part * s.head_dim as f64) / 2.).floor() as i64;
    let all = powers(s.theta, s.head_dim)?.f_reciprocal()?;
    let turns = number::arange(0, s.head_dim / 2, tch::Device::Cpu)?.f_lt_number(turned)?;
    Rope::new(&all.f_mul(&turns)?.f_div_number(factor)?)
}

/// A list by its length, so that a message stays short.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "missing".into(),
        Value::Array(list) if list.iter().all(Value::is_number) => {
            format!("a list of {} numbers", list.len())
        }
        Value::Array(_) => "a list with other things than numbers".into(),
        other => other.to_string(),
    }
}
