//! The exchange of gradients: those of one or several optimisers, with all that goes with them, in one buffer that is
//! added up over the processes.

use tch::{no_grad, Device, Kind, Tensor};

use crate::distributed::ProcessGroup;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;

/// The numbers of each rank behind the gradient: the loss times the tokens, as a large and a small part, so that f32
/// loses nothing.
const LOSS: i64 = 2;
/// The numbers of each rank in the tail: its tokens, likewise.
const TOKENS: usize = 2;
/// The large part of a number of tokens counts in these.
const LARGE: i64 = 1 << 20;

/// The gradient of one optimiser on one rank.
pub(super) struct Part<'a> {
    /// In the layout of the adapter; zeros where none is present.
    pub(super) gradient: Tensor,
    /// One for each slot of the layout.
    pub(super) present: Vec<bool>,
    /// The loss, and the tokens that it is a mean over; none for a mean over the ranks.
    pub(super) share: Option<(&'a Tensor, i64)>,
}

/// The same of all ranks.
pub(super) struct Whole {
    pub(super) gradient: Tensor,
    pub(super) present: Vec<bool>,
    /// The mean loss over the tokens, and their number, if ranks gave theirs.
    pub(super) mean: Option<(Tensor, i64)>,
}

/// Adds up the parts of all ranks, each of which calls this with parts of the same sizes, kind and device.
///
/// # Errors
/// `Distributed` if another process ends or does not answer in time, or only some weigh their losses.
pub(super) fn exchange(group: &ProcessGroup, parts: &[Part]) -> Result<Vec<Whole>> {
    let Some(first) = parts.first() else { return Ok(Vec::new()) };
    let (rank, world_size) = (group.rank(), group.world_size());
    let kind = first.gradient.f_kind()?;
    let device = group.device_for(first.gradient.device());
    let of_losses = LOSS * world_size as i64;
    // Numbers that the host has to read go in the same buffer, unless that stays on a device.
    let mut numbers = Vec::new();
    for Part { present, share, .. } in parts {
        let tokens = share.map(|(_, tokens)| tokens);
        numbers.extend(Tail { present, rank, world_size, tokens }.numbers());
    }
    let mut tail = Tensor::f_from_slice(&numbers)?.f_to_kind(kind)?;
    let apart = device != Device::Cpu;
    let mut size = if apart { 0 } else { tail.size1()? };
    for part in parts {
        size += part.gradient.size1()? + of_losses;
    }
    let mut buffer = Tensor::f_zeros([size], (kind, device))?;
    let (mut views, mut at) = (Vec::with_capacity(parts.len()), 0);
    for Part { gradient, share, .. } in parts {
        let elements = gradient.size1()?;
        let mut own = buffer.f_narrow(0, at, elements)?;
        let losses = buffer.f_narrow(0, at + elements, of_losses)?;
        at += elements + of_losses;
        match share {
            Some((_, 0)) => (),
            Some((loss, tokens)) => {
                own.f_copy_(&gradient.f_mul_number(*tokens as f64)?)?;
                let parts = parts_of(loss, *tokens, device)?;
                losses.f_narrow(0, LOSS * rank as i64, LOSS)?.f_copy_(&parts)?;
            }
            None => own.f_copy_(gradient)?,
        }
        views.push((own, losses));
    }
    if apart {
        // The host's first: it hears of a rank that has ended.
        group.sum(&mut tail)?;
        group.sum(&mut buffer)?;
    } else {
        let mut place = buffer.f_narrow(0, at, size - at)?;
        place.f_copy_(&tail)?;
        group.sum(&mut buffer)?;
        tail = place;
    }
    let tail = Vec::<f64>::try_from(&tail.f_to_kind(Kind::Double)?)?;
    let mut rest = tail.as_slice();
    let mut all = Vec::with_capacity(parts.len());
    for (Part { present, share, .. }, (mut own, losses)) in parts.iter().zip(views) {
        let (of_slots, more) = rest.split_at(present.len());
        let (weighted, more) = more.split_at(1);
        let (of_ranks, more) = more.split_at(TOKENS * world_size);
        rest = more;
        let weighted = weighted[0] as usize;
        if weighted != if share.is_some() { world_size } else { 0 } {
            refuse!(
                Distributed,
                "{weighted} of {world_size} ranks call `all_reduce` with their loss and tokens before the step, expected \
                 all or none"
            );
        }
        let tokens = of_all(of_ranks);
        let total = if share.is_some() { tokens.max(1) as f64 } else { world_size as f64 };
        let _ = no_grad(|| own.f_div_scalar_(total))?;
        let mean = match share {
            Some((loss, _)) => Some((mean(&losses, total, loss)?, tokens)),
            None => None,
        };
        let present = of_slots.iter().map(|count| *count > 0.).collect();
        all.push(Whole { gradient: own, present, mean });
    }
    Ok(all)
}

/// The mean of the losses of all ranks, on the device of one of them, in f32 at least.
fn mean(losses: &Tensor, total: f64, like: &Tensor) -> Result<Tensor> {
    let kind = if like.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
    let sum = losses.f_to_kind(Kind::Double)?.f_sum(Kind::Double)?;
    Ok(sum.f_div_number(total)?.f_to_kind(kind)?.f_to_device(like.device())?)
}

/// The loss times the tokens in two parts.
fn parts_of(loss: &Tensor, tokens: i64, device: Device) -> Result<Tensor> {
    let sum = loss.f_detach()?.f_to_device(device)?.f_to_kind(Kind::Double)?.f_reshape([1])?;
    let sum = sum.f_mul_number(tokens as f64)?;
    let large = sum.f_to_kind(Kind::Float)?.f_to_kind(Kind::Double)?;
    // Nothing is left of a number that is not finite.
    let small = sum.f_sub(&large)?.f_nan_to_num(0., None, None)?;
    Ok(Tensor::f_cat(&[large, small], 0)?)
}

/// Numbers that the host has to read.
struct Tail<'a> {
    present: &'a [bool],
    rank: usize,
    world_size: usize,
    tokens: Option<i64>,
}

impl Tail<'_> {
    /// One per slot, the number of ranks that weigh, and those of each rank, which only that rank writes.
    fn numbers(&self) -> Vec<f64> {
        let one = |is| f64::from(u8::from(is));
        let mut numbers: Vec<f64> = self.present.iter().map(|present| one(*present)).collect();
        numbers.push(one(self.tokens.is_some()));
        let mut of_ranks = vec![0.; TOKENS * self.world_size];
        if let Some(tokens) = self.tokens {
            let parts = [(tokens / LARGE) as f64, (tokens % LARGE) as f64];
            of_ranks[TOKENS * self.rank..TOKENS * (self.rank + 1)].copy_from_slice(&parts);
        }
        numbers.extend(of_ranks);
        numbers
    }
}

/// The tokens of all ranks.
fn of_all(of_ranks: &[f64]) -> i64 {
    of_ranks.chunks_exact(TOKENS).map(|own| own[0] as i64 * LARGE + own[1] as i64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_rank_pass_through_f32_unharmed() {
        for (sum, tokens) in
            [(0., 1), (1. / 3. * 1e9, (1 << 40) + 12345), (-7.1, 1), (f64::INFINITY, 3)]
        {
            let loss = Tensor::from(sum / tokens as f64);
            let parts = parts_of(&loss, tokens, Device::Cpu).unwrap().to_kind(Kind::Float);
            let found = parts.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
            assert!(found == sum || (found - sum).abs() <= sum.abs() * 1e-13, "{found} for {sum}");
            let present = &[true, false];
            let tail = Tail { present, rank: 1, world_size: 3, tokens: Some(tokens) };
            let numbers: Vec<f64> =
                tail.numbers().iter().map(|number| f64::from(*number as f32)).collect();
            assert_eq!(numbers[..3], [1., 0., 1.]);
            assert_eq!(of_all(&numbers[3..]), tokens);
        }
    }
}
