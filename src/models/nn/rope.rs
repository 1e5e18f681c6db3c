//! Rotary position embeddings: tables of cosines and sines, and their application.

use serde_json::Value;
use tch::{Kind, Tensor};

use crate::error::{refuse, Error, ErrorKind, Result};

/// The growth of the angles with the position.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) struct Rope {
    theta: f64,
    scaling: Scaling,
}

#[derive(Debug, Clone, PartialEq)]
enum Scaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
}

impl Rope {
    /// Reads `rope_parameters` of transformers 5, or `rope_theta` (`theta` is its name in the family, and its default)
    /// and `rope_scaling` of before.
    pub(in crate::models) fn from_config(config: &Value, theta: (&str, f64)) -> Result<Self> {
        let parameters = ["rope_parameters", "rope_scaling"];
        let parameters =
            parameters.iter().filter_map(|key| config.get(key)).find(|v| v.is_object());
        let parameters = parameters.cloned().unwrap_or(Value::Null);
        let number = |key: &str| parameters.get(key).and_then(Value::as_f64);
        let needed = |key: &str| {
            number(key).ok_or_else(|| {
                let message = format!("'{key}' is missing in the rope parameters, or not a number");
                Error::new(ErrorKind::InvalidConfig, message)
            })
        };
        let top = |key: &str| config.get(key).and_then(Value::as_f64);
        let base = number("rope_theta").or(top("rope_theta")).or(top(theta.0)).unwrap_or(theta.1);
        let kind = parameters.get("rope_type").or(parameters.get("type")).and_then(Value::as_str);
        let scaling = match kind.unwrap_or("default") {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: needed("factor")? },
            "llama3" => Scaling::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original: needed("original_max_position_embeddings")?,
            },
            other => {
                refuse!(
                    Unsupported,
                    "rope_type is '{other}', expected 'default', 'linear' or 'llama3'"
                );
            }
        };
        Ok(Rope { theta: base, scaling })
    }

    /// Cosines and sines, with their signs, `[length, dims]` of the positions `[length]`, or `[batch, 1, length, dims]` of
    /// `[batch, length]`.
    pub(in crate::models) fn tables(
        &self,
        dims: i64,
        positions: &Tensor,
        side_by_side: bool,
        kind: Kind,
    ) -> Result<(Tensor, Tensor)> {
        let half = (0..dims / 2).map(|i| {
            let frequency = self.theta.powf(-2. * i as f64 / dims as f64);
            self.scaled(frequency) as f32
        });
        let frequencies = Tensor::f_from_slice(&half.collect::<Vec<f32>>())?;
        let frequencies = frequencies.f_to_device(positions.device())?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&frequencies)?;
        let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
        // Of the two that are turned against each other, the first loses what the second gains.
        let lost = sin.f_neg()?;
        let (cos, sin) = match side_by_side {
            true => (
                cos.f_repeat_interleave_self_int(2, -1, None)?,
                Tensor::f_stack(&[&lost, &sin], -1)?.f_flatten(-2, -1)?,
            ),
            false => (Tensor::f_cat(&[&cos, &cos], -1)?, Tensor::f_cat(&[&lost, &sin], -1)?),
        };
        let table = |x: Tensor| -> Result<Tensor> {
            let x = if x.dim() == 3 { x.f_unsqueeze(1)? } else { x };
            Ok(x.f_to_kind(kind)?)
        };
        Ok((table(cos)?, table(sin)?))
    }

    fn scaled(&self, frequency: f64) -> f64 {
        match self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            // Long waves are slowed down, short ones left, those between blended (Llama 3.1).
            Scaling::Llama3 { factor, low, high, original } => {
                let wave = 2. * std::f64::consts::PI / frequency;
                if wave < original / high {
                    frequency
                } else if wave > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wave - low) / (high - low);
                    (1. - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Turns `[batch, heads, length, head_dim]` by the angles of the positions; dimensions that have none stay. The two that
/// are turned against each other stand half apart, or side by side.
pub(in crate::models) fn rotate(
    x: &Tensor,
    (cos, sin): &(Tensor, Tensor),
    side_by_side: bool,
) -> Result<Tensor> {
    let (turned, whole) = (*cos.size().last().unwrap_or(&0), x.size4()?.3);
    if turned < whole {
        let parts = x.f_split_with_sizes([turned, whole - turned], -1)?;
        let angles = (cos.shallow_clone(), sin.shallow_clone());
        return Ok(Tensor::f_cat(&[&rotate(&parts[0], &angles, side_by_side)?, &parts[1]], -1)?);
    }
    let other = match side_by_side {
        true => x.f_unflatten(-1, [turned / 2, 2])?.f_flip([-1])?.f_flatten(-2, -1)?,
        false => x.f_roll([turned / 2], [-1])?,
    };
    Ok(x.f_mul(cos)?.f_addcmul(&other, sin)?)
}
