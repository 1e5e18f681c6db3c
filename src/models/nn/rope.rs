//! Rotary position embeddings: tables of cosines and sines, and their application.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// The growth of the angles with the position.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) struct Rope {
    /// Per pair of dimensions, the angle of the first position behind 0.
    pub(in crate::models) frequencies: Vec<f32>,
    /// Cosines and sines are multiplied with it.
    pub(in crate::models) attention_factor: f64,
    pub(in crate::models) beyond: Beyond,
}

/// The frequencies of sequences that are longer than those the model has learned from.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) enum Beyond {
    Same,
    /// Others, for sequences longer than this (LongRoPE).
    Others {
        length: f64,
        frequencies: Vec<f32>,
    },
    /// Lower, the longer the sequence is (dynamic NTK scaling).
    Lower {
        length: f64,
        theta: f64,
        factor: f64,
    },
}

/// `theta` to the power of 0, 2/dims, 4/dims …: one over a frequency. In f32, as in transformers: a position of 100,000
/// makes the last bit count.
pub(in crate::models) fn powers(theta: f64, dims: i64) -> Result<Tensor> {
    Ok(Tensor::f_pow_scalar(theta, &exponents(dims, Device::Cpu)?)?)
}

fn exponents(dims: i64, device: Device) -> Result<Tensor> {
    let even = Tensor::f_arange_start_step(0, dims, 2, (Kind::Float, device))?;
    Ok(even.f_div_scalar(dims)?)
}

impl Rope {
    pub(in crate::models) fn new(frequencies: &Tensor) -> Result<Self> {
        let frequencies = Vec::try_from(frequencies)?;
        Ok(Rope { frequencies, attention_factor: 1., beyond: Beyond::Same })
    }

    /// The greatest length up to `padded` whose angles are those of `length`.
    pub(in crate::models) fn longest_like(&self, length: i64, padded: i64) -> i64 {
        let (learned, beyond) = match &self.beyond {
            Beyond::Same => return padded,
            Beyond::Others { length, .. } => (*length as i64, padded),
            Beyond::Lower { length: learned, .. } => (*learned as i64, length),
        };
        if length > learned {
            beyond
        } else {
            padded.min(learned)
        }
    }

    /// Cosines and sines, with their signs, `[length, dims]` of the positions `[length]`, or `[batch, 1, length, dims]`
    /// of `[batch, length]`.
    pub(in crate::models) fn tables(
        &self,
        positions: &Tensor,
        side_by_side: bool,
        kind: Kind,
    ) -> Result<(Tensor, Tensor)> {
        let frequencies = self.at(positions)?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&frequencies)?;
        let (mut cos, mut sin) = (angles.f_cos()?, angles.f_sin()?);
        if self.attention_factor != 1. {
            cos = cos.f_mul_scalar(self.attention_factor)?;
            sin = sin.f_mul_scalar(self.attention_factor)?;
        }
        // Of the two that are turned against each other, the first loses what the second gains.
        let lost = sin.f_neg()?;
        let (cos, sin) = if side_by_side {
            let sin = Tensor::f_stack(&[&lost, &sin], -1)?.f_flatten(-2, -1)?;
            (cos.f_repeat_interleave_self_int(2, -1, None)?, sin)
        } else {
            (Tensor::f_cat(&[&cos, &cos], -1)?, Tensor::f_cat(&[&lost, &sin], -1)?)
        };
        let table = |x: Tensor| -> Result<Tensor> {
            let x = if x.dim() == 3 { x.f_unsqueeze(1)? } else { x };
            Ok(x.f_to_kind(kind)?)
        };
        Ok((table(cos)?, table(sin)?))
    }

    /// The frequencies for a sequence with these positions. The longest row decides for all, as in transformers; what
    /// has run before does not. Chosen on the device: to read a number from there, a training step would have to wait.
    fn at(&self, positions: &Tensor) -> Result<Tensor> {
        let device = positions.device();
        let there = |frequencies: &[f32]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(frequencies)?.f_to_device(device)?)
        };
        let own = there(&self.frequencies)?;
        let longest = || positions.f_max()?.f_add_scalar(1);
        let (length, others) = match &self.beyond {
            Beyond::Same => return Ok(own),
            Beyond::Others { length, frequencies } => (*length, there(frequencies)?),
            Beyond::Lower { length, theta, factor } => {
                let dims = 2 * self.frequencies.len() as i64;
                let growth = longest()?.f_to_kind(Kind::Float)?.f_mul_scalar(*factor)?;
                let growth = growth.f_div_scalar(*length)?.f_sub_scalar(factor - 1.)?;
                let growth = growth.f_pow_tensor_scalar(dims as f64 / (dims - 2) as f64)?;
                let powers = growth.f_mul_scalar(*theta)?.f_pow(&exponents(dims, device)?)?;
                (*length, powers.f_reciprocal()?)
            }
        };
        Ok(others.f_where_self(&longest()?.f_gt(length)?, &own)?)
    }
}

/// Turns `[batch, heads, length, head_dim]` by the angles of the positions; dimensions that have none stay. The two
/// that are turned against each other stand half apart, or side by side.
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
    let other = if side_by_side {
        x.f_unflatten(-1, [turned / 2, 2])?.f_flip([-1])?.f_flatten(-2, -1)?
    } else {
        x.f_roll([turned / 2], [-1])?
    };
    Ok(x.f_mul(cos)?.f_addcmul(&other, sin)?)
}
