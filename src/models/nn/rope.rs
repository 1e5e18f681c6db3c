//! Rotary position embeddings: tables of cosines and sines, and their application.

use tch::{Device, Kind, Tensor};

use crate::device::trace::sent_numbers;
use crate::error::Result;
use crate::kernels::fused;
use crate::kernels::number::{self, WithNumber};

/// The growth of the angles with the position.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) struct Rope {
    /// Per pair of dimensions, the angle of the first position behind 0.
    pub(in crate::models) frequencies: Vec<f32>,
    /// Cosines and sines are multiplied with it.
    pub(in crate::models) attention_factor: f64,
    pub(in crate::models) beyond: Beyond,
    /// Per pair of dimensions, the number of the axis whose positions turn it, where there are several.
    pub(in crate::models) axes: Vec<i64>,
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
    Ok(number::pow(theta, &exponents(dims, Device::Cpu)?)?)
}

fn exponents(dims: i64, device: Device) -> Result<Tensor> {
    let pairs = number::arange(0, (dims + 1) / 2, device)?.f_to_kind(Kind::Float)?;
    Ok(pairs.f_mul_number(2)?.f_div_number(dims)?)
}

impl Rope {
    pub(in crate::models) fn new(frequencies: &Tensor) -> Result<Self> {
        let frequencies = Vec::try_from(frequencies)?;
        Ok(Rope { frequencies, attention_factor: 1., beyond: Beyond::Same, axes: Vec::new() })
    }

    /// True if both turn by the same at every length, but for the rounding of settings to f32.
    pub(in crate::models) fn is_like(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
        let all_near = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near((*a).into(), (*b).into()))
        };
        let long = |of: &Self| match &of.beyond {
            Beyond::Same => Some((of.frequencies.clone(), None)),
            Beyond::Others { length, frequencies } => {
                let changes = !all_near(frequencies, &of.frequencies);
                Some((frequencies.clone(), changes.then_some(*length)))
            }
            Beyond::Lower { .. } => None,
        };
        let beyond = match (long(self), long(other)) {
            (Some((own, from)), Some((its, its_from))) => from == its_from && all_near(&own, &its),
            _ => self.beyond == other.beyond,
        };
        all_near(&self.frequencies, &other.frequencies)
            && near(self.attention_factor, other.attention_factor)
            && beyond
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

    /// Cosines and sines, with their signs, `[length, dims]` of the positions `[length]`, or `[batch, length, dims]` of
    /// `[batch, length]`, or of `[axes, batch, length]`.
    pub(in crate::models) fn tables(
        &self,
        positions: &Tensor,
        side_by_side: bool,
        kind: Kind,
    ) -> Result<(Tensor, Tensor)> {
        let frequencies = self.at(positions)?;
        let positions = if positions.dim() == 3 {
            let axes = sent_numbers(&self.axes, positions.device())?;
            positions.f_index_select(0, &axes)?.f_permute([1, 2, 0])?
        } else {
            positions.f_unsqueeze(-1)?
        };
        let angles = positions.f_to_kind(Kind::Float)?.f_mul(&frequencies)?;
        let (mut cos, mut sin) = (angles.f_cos()?, angles.f_sin()?);
        if self.attention_factor != 1. {
            cos = cos.f_mul_number(self.attention_factor)?;
            sin = sin.f_mul_number(self.attention_factor)?;
        }
        // Of the two that are turned against each other, the first loses what the second gains.
        let lost = sin.f_neg()?;
        let (cos, sin) = if side_by_side {
            let sin = Tensor::f_stack(&[&lost, &sin], -1)?.f_flatten(-2, -1)?;
            (cos.f_repeat_interleave_self_int(2, -1, None)?, sin)
        } else {
            (Tensor::f_cat(&[&cos, &cos], -1)?, Tensor::f_cat(&[&lost, &sin], -1)?)
        };
        Ok((cos.f_to_kind(kind)?, sin.f_to_kind(kind)?))
    }

    /// The frequencies for a sequence with these positions. The longest row decides for all, as in transformers; what
    /// has run before does not. Chosen on the device: to read a number from there, a training step would have to wait.
    fn at(&self, positions: &Tensor) -> Result<Tensor> {
        let device = positions.device();
        let there = |frequencies: &[f32]| sent_numbers(frequencies, device);
        let own = there(&self.frequencies)?;
        let longest = || positions.f_max()?.f_add_number(1);
        let (length, others) = match &self.beyond {
            Beyond::Same => return Ok(own),
            Beyond::Others { length, frequencies } => (*length, there(frequencies)?),
            Beyond::Lower { length, theta, factor } => {
                let dims = 2 * self.frequencies.len() as i64;
                let growth = longest()?.f_to_kind(Kind::Float)?.f_mul_number(*factor)?;
                let growth = growth.f_div_number(*length)?.f_sub_number(factor - 1.)?;
                let growth = growth.f_pow_number(dims as f64 / (dims - 2) as f64)?;
                let powers = growth.f_mul_number(*theta)?.f_pow(&exponents(dims, device)?)?;
                (*length, powers.f_reciprocal()?)
            }
        };
        Ok(others.f_where_self(&longest()?.f_gt_number(length)?, &own)?)
    }
}

/// Turns queries and keys, `[batch, length, heads, head_dim]` each, by the angles of the positions.
pub(in crate::models) fn rotate_both(
    [q, k]: [Tensor; 2],
    angles: &(Tensor, Tensor),
    side_by_side: bool,
) -> Result<[Tensor; 2]> {
    if let Some(both) = fused::turned([&q, &k], angles, side_by_side)? {
        return Ok(both);
    }
    if q.device() == Device::Cpu {
        return Ok([rotate(&q, angles, side_by_side)?, rotate(&k, angles, side_by_side)?]);
    }
    rotate_together([q, k], angles, side_by_side)
}

/// As one tensor: a copy there and one back are worth it where each operation costs a launch.
fn rotate_together(
    [q, k]: [Tensor; 2],
    angles: &(Tensor, Tensor),
    side_by_side: bool,
) -> Result<[Tensor; 2]> {
    let heads = [q.size4()?.2, k.size4()?.2];
    let both = rotate(&Tensor::f_cat(&[q, k], 2)?, angles, side_by_side)?;
    let mut parts = both.f_split_with_sizes(heads, 2)?.into_iter();
    let mut next = || parts.next().unwrap_or_default();
    Ok([next(), next()])
}

/// Turns `[batch, length, heads, head_dim]` by the angles of the positions; dimensions that have none stay. The two
/// that are turned against each other stand half apart, or side by side. Behind a transpose it would take copies.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor), side_by_side: bool) -> Result<Tensor> {
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
    let mut turned = x.f_mul(cos)?;
    Ok(turned.f_addcmul_(&other, sin)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_keys_turn_together_as_apart_and_so_do_their_gradients() {
        tch::set_num_threads(1);
        tch::manual_seed(3);
        let options = (Kind::Float, Device::Cpu);
        let positions = [
            Tensor::arange(5, (Kind::Int64, Device::Cpu)),
            Tensor::from_slice2(&[[0_i64, 1, 0, 1, 2], [0, 1, 2, 3, 4]]),
        ];
        for (positions, dims) in positions.iter().flat_map(|p| [(p, 8), (p, 4)]) {
            for side_by_side in [false, true] {
                let rope =
                    Rope::new(&powers(10_000., dims).unwrap().f_reciprocal().unwrap()).unwrap();
                let (cos, sin) = rope.tables(positions, side_by_side, Kind::Float).unwrap();
                let angles = (cos.unsqueeze(-2), sin.unsqueeze(-2));
                let [q, k] =
                    [3, 1].map(|h| Tensor::randn([2, 5, h, 8], options).set_requires_grad(true));
                let upstream = [3, 1].map(|h| Tensor::randn([2, 5, h, 8], options));
                let all = |together: bool| {
                    let both = [&q, &k].map(Tensor::shallow_clone);
                    let turn = if together { rotate_together } else { rotate_both };
                    let [q2, k2] = turn(both, &angles, side_by_side).unwrap();
                    let sum = (&q2 * &upstream[0]).sum(Kind::Float)
                        + (&k2 * &upstream[1]).sum(Kind::Float);
                    let mut all = Tensor::run_backward(&[sum], &[&q, &k], false, false);
                    all.extend([q2.detach(), k2.detach()]);
                    all
                };
                for (found, expected) in all(true).iter().zip(&all(false)) {
                    assert!(found.allclose(expected, 0., 1e-6, false));
                }
            }
        }
    }

    #[test]
    fn ropes_are_alike_if_they_turn_by_the_same_at_every_length() {
        let rope = |frequencies: &[f32]| Rope::new(&Tensor::from_slice(frequencies)).unwrap();
        let beyond = |length: f64, frequencies: &[f32]| Rope {
            beyond: Beyond::Others { length, frequencies: frequencies.to_vec() },
            ..rope(&[1., 0.5])
        };
        let own = rope(&[1., 0.5]);
        assert!(own.is_like(&rope(&[1., 0.5000001])) && own.is_like(&beyond(8., &[1., 0.5])));
        for other in [
            rope(&[1., 0.5001]),
            rope(&[1.]),
            beyond(8., &[1., 0.25]),
            Rope { attention_factor: 1.1, ..own.clone() },
            Rope { beyond: Beyond::Lower { length: 8., theta: 2., factor: 2. }, ..own.clone() },
        ] {
            assert!(!own.is_like(&other) && !other.is_like(&own), "{other:?}");
        }
        assert!(!beyond(8., &[1., 0.25]).is_like(&beyond(9., &[1., 0.25])));
    }
}
