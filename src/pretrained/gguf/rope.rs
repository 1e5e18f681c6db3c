//! The rope of a GGUF file as `rope_parameters`.

use serde_json::{json, Map, Value};

use super::fields::Fields;
use super::settings::Config;
use super::tensors::Tensors;
use crate::error::Result;

/// The base that llama.cpp takes if a file has no `rope.freq_base`.
const THETA: f64 = 10_000.;

/// The ratio of waves between which Llama 3 blends, and the lengths that its models were first trained on.
const LLAMA3: (f64, f64) = (1., 4.);

/// The parameters of a model with one rope, of which `dims` dimensions of a head are turned.
pub(super) fn parameters(
    fields: &Fields,
    tensors: &Tensors,
    config: &Config,
    dims: i64,
) -> Result<Map<String, Value>> {
    let theta = fields.number("rope.freq_base")?.unwrap_or(THETA);
    let mut rope = scaling(fields, config)?;
    rope.insert("rope_theta".into(), theta.into());
    if let Some(factors) = tensors.factors("rope_freqs.weight")? {
        if rope["rope_type"] != "default" {
            return fields.refuse(
                "rope.scaling.type",
                &rope["rope_type"],
                "none beside the tensor 'rope_freqs.weight'",
            );
        }
        if factors.len() as i64 != dims / 2 {
            let expected = format!("twice the {} values of 'rope_freqs.weight'", factors.len());
            return fields.refuse("rope.dimension_count", dims, &expected);
        }
        rope.extend(slowed(&factors, theta, config.positions));
    }
    Ok(rope)
}

/// The type of rope with its settings, but for `rope_theta`.
fn scaling(fields: &Fields, config: &Config) -> Result<Map<String, Value>> {
    let name = fields.text("rope.scaling.type")?;
    let factor = fields.number("rope.scaling.factor")?.filter(|factor| *factor != 0.);
    let factor = factor.or(fields.number("rope.scale_linear")?.filter(|factor| *factor != 0.));
    let original = fields.integer("rope.scaling.original_context_length")?;
    let attention = fields.number("rope.scaling.attn_factor")?.filter(|factor| *factor != 0.);
    let mut rope = Map::new();
    let mut set = |key: &str, value: Value| rope.insert(key.into(), value);
    match (name, factor) {
        (Some("none"), _) | (None | Some("linear" | "longrope"), None) => {
            set("rope_type", "default".into());
        }
        (None | Some("linear"), Some(factor)) => {
            set("rope_type", if factor == 1. { "default" } else { "linear" }.into());
            if factor != 1. {
                set("factor", factor.into());
            }
        }
        (Some("yarn"), Some(factor)) => {
            set("rope_type", "yarn".into());
            set("factor", factor.into());
            set("original_max_position_embeddings", original.unwrap_or(config.positions).into());
            for (key, ours) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                if let Some(beta) = fields.number(&format!("rope.scaling.{key}"))? {
                    set(ours, beta.into());
                }
            }
            let mut by = attention.unwrap_or(1.);
            by *= fields.number("rope.scaling.yarn_attn_factor")?.unwrap_or(1.);
            if by != 1. {
                set("attention_factor", (by * (0.1 * factor.ln() + 1.)).into());
            }
            match fields.number("rope.scaling.yarn_ext_factor")? {
                None | Some(1.) | Some(-1.) => (),
                Some(other) => return fields.refuse("rope.scaling.yarn_ext_factor", other, "1"),
            }
            return Ok(rope);
        }
        // Its factors are tensors.
        (Some("longrope"), Some(_)) => {
            set("rope_type", "default".into());
        }
        (Some(other), _) => {
            let known = "none, linear, yarn with 'rope.scaling.factor', or longrope";
            return fields.refuse("rope.scaling.type", other, known);
        }
    }
    if let Some(attention) = attention.filter(|factor| *factor != 1. && !config.has_long_rope) {
        return fields.refuse("rope.scaling.attn_factor", attention, "1 with this rope");
    }
    Ok(rope)
}

/// The settings of the rope of Llama 3.1.
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// The length that the model was first trained on.
    pub(super) original: f64,
}

/// The number that divides the frequency of one of so many pairs of dimensions.
pub(super) fn slowed_by(of: &Llama3, theta: f64, pair: usize, pairs: usize) -> f64 {
    let wave = 2. * std::f64::consts::PI * theta.powf(pair as f64 / pairs as f64);
    if wave < of.original / of.high {
        1.
    } else if wave > of.original / of.low {
        of.factor
    } else {
        let blend = (of.original / wave - of.low) / (of.high - of.low);
        1. / ((1. - blend) / of.factor + blend)
    }
}

/// The rope whose frequencies are divided by `factors`: that of Llama 3.1, if it is that one, or one in the same form
/// as LongRoPE with one list for all lengths.
fn slowed(factors: &[f32], theta: f64, positions: i64) -> Map<String, Value> {
    let largest = f64::from(factors.iter().copied().fold(1., f32::max));
    let (low, high) = LLAMA3;
    let pairs = factors.len();
    let of = |value: Value| value.as_object().cloned().unwrap_or_default();
    if factors.iter().all(|factor| *factor == 1.) {
        return of(json!({"rope_type": "default"}));
    }
    // The nearest whole number, or quarter, that a configuration would have.
    let factor = (largest * 4.).round() / 4.;
    for power in (3..24).rev() {
        let original = f64::from(1 << power);
        let llama3 = Llama3 { factor, low, high, original };
        let expected = |pair: usize| slowed_by(&llama3, theta, pair, pairs);
        let fits =
            |(pair, found): (usize, &f32)| (f64::from(*found) / expected(pair) - 1.).abs() < 1e-5;
        if factors.iter().enumerate().all(fits) {
            return of(json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as i64,
            }));
        }
    }
    of(json!({
        "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.,
        "original_max_position_embeddings": positions,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_of_llama_3_are_recognised_and_others_are_kept() {
        // Llama 3.2 1B: 32 pairs, theta 500000, factor 32, 8192 positions.
        let factors: Vec<f32> = (0..32)
            .map(|pair| {
                let wave = 2. * std::f64::consts::PI * 500_000_f64.powf(f64::from(pair) / 32.);
                let blend = ((8192. / wave - 1.) / 3.).clamp(0., 1.);
                (1. / ((1. - blend) / 32. + blend)) as f32
            })
            .collect();
        let rope = slowed(&factors, 500_000., 131_072);
        assert_eq!(rope["rope_type"], "llama3");
        assert_eq!(
            (&rope["factor"], &rope["original_max_position_embeddings"]),
            (&json!(32.), &json!(8192))
        );
        let rope = slowed(&[1., 2., 3.], 10_000., 64);
        assert_eq!(
            (&rope["rope_type"], &rope["long_factor"]),
            (&json!("longrope"), &json!([1., 2., 3.]))
        );
        assert_eq!(slowed(&[1.; 4], 10_000., 64)["rope_type"], "default");
    }
}
