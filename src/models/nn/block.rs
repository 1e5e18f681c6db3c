//! One block of a transformer: attention and MLP, with their norms.

use tch::{no_grad, Kind, Tensor};

use super::attention::Attention;
use super::cache::Slot;
use super::context::Context;
use super::linear::Linear;
use super::mlp::{dropped, Mlp};
use super::norm::Norm;
use super::rows::Rows;
use super::streamed::{Matrix, Stay};
use super::weights::Weights;
use crate::device::transfer::sent;
use crate::error::Result;
use crate::kernels::number::{self, WithNumber};

#[derive(Debug)]
pub(in crate::models) struct Block {
    pub(in crate::models) attention: Attention,
    /// Attention to another sequence, between the two.
    pub(in crate::models) across: Option<Across>,
    pub(in crate::models) mlp: Mlp,
    /// Before attention, behind it, before the MLP, behind it.
    pub(in crate::models) norms: [Option<Norm>; 4],
    pub(in crate::models) flow: Flow,
    /// On what attention and MLP add.
    pub(in crate::models) branches: [Branch; 2],
    pub(in crate::models) guard: Guard,
    /// The place where its matrices come when it is entered.
    pub(in crate::models) stay: Option<Stay>,
}

/// Attention to another sequence, with the norms before and behind it.
#[derive(Debug)]
pub(in crate::models) struct Across {
    pub(in crate::models) attention: Attention,
    pub(in crate::models) norms: [Option<Norm>; 2],
}

/// The order of a block's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Flow {
    /// Attention, then the MLP; norms stand inside the branches.
    Sequential,
    /// As `Sequential`, but what is added to is the norm's output (BLOOM, Falcon).
    SequentialFromNorm,
    /// The norms behind stand on the sums.
    NormedSums,
    /// Both see the block's input, through one norm or one each.
    Parallel,
}

/// The last steps of attention or of the MLP, before its output is added.
#[derive(Debug, Default)]
pub(in crate::models) struct Branch {
    /// A factor per channel (LayerScale, arXiv 2103.17239).
    pub(in crate::models) scales: Option<Tensor>,
    /// One factor for all.
    pub(in crate::models) factor: Option<f64>,
    pub(in crate::models) dropout: f64,
}

/// The places where f16 is kept from infinity, as transformers does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Guard {
    None,
    EachSum,
    Output,
}

/// Lets the matrices of blocks come when they are needed, if they are kept so, but for blocks that are resident. Then
/// `behind`, which is used behind the last block, comes so as well if it is a part of a file's map; gives its stay.
pub(in crate::models) fn stream(
    blocks: &mut [Block],
    behind: Option<Matrix>,
    weights: &Weights,
) -> Result<Option<Stay>> {
    let Some(frozen) = weights.streamed() else { return Ok(None) };
    let (device, mut parts, mut staying) = (weights.device(), Vec::new(), Vec::new());
    for (at, block) in blocks.iter_mut().enumerate() {
        let matrices: Vec<Matrix> = block.linears().filter_map(Linear::streamed).collect();
        if frozen.is_resident(at) {
            for (_, mut variable) in matrices {
                let there = sent(&variable, device)?;
                no_grad(|| variable.f_set_data(&there))?;
            }
        } else {
            parts.push(matrices);
            staying.push(block);
        }
    }
    if parts.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    parts.extend(behind.filter(Stay::is_possible).map(|matrix| vec![matrix]));
    let mut stays = Stay::of_parts(parts, device)?.into_iter();
    staying.into_iter().zip(&mut stays).for_each(|(block, stay)| block.stay = Some(stay));
    Ok(stays.next())
}

impl Block {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let across = self.across.as_ref().map(|across| &across.attention);
        let attentions = [Some(&self.attention), across].into_iter().flatten();
        attentions.flat_map(Attention::linears).chain(self.mlp.linears())
    }

    /// The norm in front of attention.
    pub(super) fn first_norm(&self) -> Option<&Norm> {
        self.norms[0].as_ref()
    }

    /// The hidden states behind the block, and their norm by `next`, if there is one: it is computed with the last sum.
    /// `normed` is what `first_norm` makes of `hidden`, where that is known.
    pub(super) fn forward(
        &self,
        (hidden, normed): (&Tensor, Option<Tensor>),
        context: &Context,
        source: Option<&Tensor>,
        (own, across): (Option<Slot>, Option<Slot>),
        next: Option<&Norm>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let _rows = Rows::enter(context.rows.clone());
        self.stay.iter().try_for_each(Stay::enter)?;
        let [before_attention, after_attention, before_mlp, after_mlp] =
            self.norms.each_ref().map(Option::as_ref);
        let train = context.train;
        let normed = match normed {
            Some(normed) => normed,
            None => optional(before_attention, hidden)?,
        };
        let attended = self.attention.forward(&normed, context, own)?;
        if self.flow == Flow::Parallel {
            let own = before_mlp.map(|norm| norm.forward(hidden)).transpose()?;
            let out = self.mlp.forward(own.as_ref().unwrap_or(&normed), train)?;
            let attended = self.branches[0].forward(attended, train)?;
            let out = self.branches[1].forward(out, train)?;
            let sum = hidden.f_add(&attended)?;
            return match next {
                Some(next) => {
                    let (sum, normed) = next.forward_sum(&sum, out)?;
                    Ok((sum, Some(normed)))
                }
                None => Ok((sum.f_add(&out)?, None)),
            };
        }
        let other = self.across.as_ref().zip(source);
        let inner = other.map_or(before_mlp, |(across, _)| across.norms[0].as_ref());
        let sides = (after_attention, inner);
        let (mut sum, mut normed) = self.sum(hidden, &normed, attended, sides, 0, train)?;
        if let Some((Across { attention, norms: [_, after] }, source)) = other {
            let attended = attention.across(&normed, source, context, across)?;
            let sides = (after.as_ref(), before_mlp);
            (sum, normed) = self.sum(&sum, &normed, attended, sides, 0, train)?;
        }
        let out = self.mlp.forward(&normed, train)?;
        let half = sum.f_kind()? == Kind::Half;
        if half && self.guard == Guard::Output {
            let (hidden, _) = self.sum(&sum, &normed, out, (after_mlp, None), 1, train)?;
            let hidden = clamped(hidden)?;
            let normed = next.map(|norm| norm.forward(&hidden)).transpose()?;
            return Ok((hidden, normed));
        }
        let (hidden, normed) = self.sum(&sum, &normed, out, (after_mlp, next), 1, train)?;
        Ok((hidden, next.map(|_| normed)))
    }

    /// Adds what a branch gives: the sum, and the next norm of it. The norm behind stands on the branch or on the sum.
    fn sum(
        &self,
        hidden: &Tensor,
        normed: &Tensor,
        out: Tensor,
        (behind, next): (Option<&Norm>, Option<&Norm>),
        branch: usize,
        train: bool,
    ) -> Result<(Tensor, Tensor)> {
        let branch = &self.branches[branch];
        let sum = if self.flow == Flow::NormedSums {
            let out = branch.forward(out, train)?;
            match behind {
                Some(norm) => norm.forward_sum(hidden, out)?.1,
                None => hidden.f_add(&out)?,
            }
        } else {
            let onto = if self.flow == Flow::SequentialFromNorm { normed } else { hidden };
            // Nothing is kept of what was before the norm and the branch: its memory is free for what comes.
            let out = match behind {
                Some(norm) => norm.forward(&out)?,
                None => out,
            };
            let out = branch.forward(out, train)?;
            let guarded = self.guard == Guard::EachSum && onto.f_kind()? == Kind::Half;
            match next {
                Some(next) if !guarded => return next.forward_sum(onto, out),
                _ if guarded => clamped(onto.f_add(&out)?)?,
                _ => onto.f_add(&out)?,
            }
        };
        let normed = optional(next, &sum)?;
        Ok((sum, normed))
    }
}

impl Branch {
    pub(in crate::models) fn with_dropout(dropout: f64) -> Self {
        Branch { dropout, ..Branch::default() }
    }

    fn forward(&self, mut x: Tensor, train: bool) -> Result<Tensor> {
        if let Some(scales) = &self.scales {
            x = match Rows::with_own([Some(scales)]) {
                Some(rows) => x.f_mul(&rows.beside(scales, &x)?)?,
                None => x.f_mul(scales)?,
            };
        }
        if let Some(factor) = self.factor {
            x = x.f_mul_number(factor)?;
        }
        dropped(x, self.dropout, train)
    }
}

pub(super) fn optional(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or(Ok(x.shallow_clone()), |norm| norm.forward(x))
}

/// Keeps f16 from infinity.
fn clamped(x: Tensor) -> Result<Tensor> {
    let place = (Kind::Half, x.device());
    let (most, less) = (number::full([0; 0], 65504., place)?, number::full([0; 0], 64504., place)?);
    let limit = most.f_where_self(&x.f_isfinite()?.f_all()?, &less)?;
    Ok(x.f_clamp_tensor(Some(&limit.f_neg()?), Some(&limit))?)
}
