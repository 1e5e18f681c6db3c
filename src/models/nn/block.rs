//! One block of a transformer: attention and MLP, with their norms; and how blocks are run.

use std::rc::Rc;

use tch::{no_grad, Device, Kind, Tensor};

use super::attention::Attention;
use super::cache::{Cache, Slot};
use super::context::Context;
use super::linear::Linear;
use super::mask::Mask;
use super::mlp::{dropped, Mlp};
use super::norm::Norm;
use super::rows::Rows;
use super::streamed::{Matrix, Stay};
use super::weights::Weights;
use crate::autograd::recompute::Tape;
use crate::autograd::scratch::Pass;
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

/// The way in which blocks are run: through the tape of block checkpointing, or with a cache of keys and values.
pub(in crate::models) enum Through<'t, 'm> {
    Tape(&'t mut Tape<'m>),
    Cache(&'t mut Cache),
}

/// Runs blocks one after the other, and each for all batches before the next: what a block needs is then fetched once
/// for all of them, here and, through the tape, in the backward pass.
pub(in crate::models) fn run_batches<'m>(
    blocks: &'m [Block],
    mut hidden: Vec<Tensor>,
    contexts: &[Rc<Context>],
    tape: &mut Tape<'m>,
) -> Result<Vec<Tensor>> {
    let _pass = Pass::begin();
    for (place, block) in blocks.iter().enumerate() {
        let runs = contexts.iter().map(|context| {
            let context = context.clone();
            move |hidden: &Tensor| block.forward(hidden, &context, None, (None, None))
        });
        let outputs = tape.run_batches(&hidden, runs)?.into_iter().zip(contexts);
        hidden = outputs
            .map(|(output, context)| context.behind(place, output))
            .collect::<Result<_>>()?;
    }
    Ok(hidden)
}

/// Runs blocks one after the other. `source` is the other sequence, `[batch, length, size]`.
pub(in crate::models) fn run<'m>(
    blocks: &'m [Block],
    mut hidden: Tensor,
    context: &Rc<Context>,
    source: Option<&Tensor>,
    layerdrop: f64,
    through: &mut Through<'_, 'm>,
) -> Result<Tensor> {
    let _pass = Pass::begin();
    for (index, block) in blocks.iter().enumerate() {
        if context.train && layerdrop > 0. {
            let drawn = Tensor::f_rand([1], (Kind::Float, Device::Cpu))?;
            if drawn.f_double_value(&[0])? < layerdrop {
                continue;
            }
        }
        hidden = match through {
            Through::Cache(cache) => {
                let [own, across] = cache.slots(index);
                block.forward(&hidden, context, source, (Some(own), Some(across)))?
            }
            Through::Tape(tape) => {
                let context = context.clone();
                let inputs: Vec<&Tensor> = [&hidden].into_iter().chain(source).collect();
                let block = move |inputs: &[Tensor]| {
                    Ok(vec![block.forward(&inputs[0], &context, inputs.get(1), (None, None))?])
                };
                tape.run_many(&inputs, block)?.swap_remove(0)
            }
        };
        hidden = context.behind(index, hidden)?;
    }
    Ok(hidden)
}

/// Runs blocks that share one mask, and nothing else.
pub(in crate::models) fn run_all<'m>(
    blocks: &'m [Block],
    hidden: Tensor,
    mask: Mask,
    train: bool,
    tape: &mut Tape<'m>,
) -> Result<Tensor> {
    let context = Rc::new(Context::new(train, hidden.f_kind()?, mask)?);
    run(blocks, hidden, &context, None, 0., &mut Through::Tape(tape))
}

/// The hidden states behind so many blocks each, in this order, of blocks that share one mask. Blocks above the highest
/// are not run.
pub(in crate::models) fn run_to<'m>(
    blocks: &'m [Block],
    mut hidden: Tensor,
    depths: &[usize],
    train: bool,
    tape: &mut Tape<'m>,
) -> Result<Vec<Tensor>> {
    let _pass = Pass::begin();
    let context = Rc::new(Context::new(train, hidden.f_kind()?, Mask::Everything)?);
    let mut at: Vec<Option<Tensor>> = depths.iter().map(|_| None).collect();
    let highest = depths.iter().copied().max().unwrap_or(0).min(blocks.len());
    for depth in 0..=highest {
        if depth > 0 {
            let block = &blocks[depth - 1..depth];
            hidden = run(block, hidden, &context, None, 0., &mut Through::Tape(tape))?;
        }
        let here = at.iter_mut().zip(depths).filter(|(_, wanted)| **wanted == depth);
        here.for_each(|(at, _)| *at = Some(hidden.shallow_clone()));
    }
    Ok(at.into_iter().flatten().collect())
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

    fn forward(
        &self,
        hidden: &Tensor,
        context: &Context,
        source: Option<&Tensor>,
        (own, across): (Option<Slot>, Option<Slot>),
    ) -> Result<Tensor> {
        let _rows = Rows::enter(context.rows.clone());
        self.stay.iter().try_for_each(Stay::enter)?;
        let [before_attention, after_attention, before_mlp, after_mlp] = &self.norms;
        let train = context.train;
        let normed = optional(before_attention, hidden)?;
        let attended = self.attention.forward(&normed, context, own)?;
        if self.flow == Flow::Parallel {
            let own = before_mlp.as_ref().map(|norm| norm.forward(hidden)).transpose()?;
            let out = self.mlp.forward(own.as_ref().unwrap_or(&normed), train)?;
            let attended = self.branches[0].forward(attended, train)?;
            let out = self.branches[1].forward(out, train)?;
            return Ok(hidden.f_add(&attended)?.f_add(&out)?);
        }
        let other = self.across.as_ref().zip(source);
        let next = other.map_or(before_mlp, |(across, _)| &across.norms[0]);
        let sides = (after_attention, next);
        let (mut sum, mut normed) = self.sum(hidden, &normed, attended, sides, 0, train)?;
        if let Some((Across { attention, norms: [_, after] }, source)) = other {
            let attended = attention.across(&normed, source, context, across)?;
            let sides = (after, before_mlp);
            (sum, normed) = self.sum(&sum, &normed, attended, sides, 0, train)?;
        }
        let out = self.mlp.forward(&normed, train)?;
        let (hidden, _) = self.sum(&sum, &normed, out, (after_mlp, &None), 1, train)?;
        match self.guard {
            Guard::Output => clamped(hidden),
            _ => Ok(hidden),
        }
    }

    /// Adds what a branch gives: the sum, and the next norm of it. The norm behind stands on the branch or on the sum.
    fn sum(
        &self,
        hidden: &Tensor,
        normed: &Tensor,
        out: Tensor,
        (behind, next): (&Option<Norm>, &Option<Norm>),
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
            match next {
                Some(next) if self.guard != Guard::EachSum => return next.forward_sum(onto, out),
                _ => onto.f_add(&out)?,
            }
        };
        let guarded = self.guard == Guard::EachSum && self.flow != Flow::NormedSums;
        let sum = if guarded { clamped(sum)? } else { sum };
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

fn optional(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or(Ok(x.shallow_clone()), |norm| norm.forward(x))
}

/// Keeps f16 from infinity.
fn clamped(x: Tensor) -> Result<Tensor> {
    if x.f_kind()? != Kind::Half {
        return Ok(x);
    }
    let place = (Kind::Half, x.device());
    let (most, less) = (number::full([0; 0], 65504., place)?, number::full([0; 0], 64504., place)?);
    let limit = most.f_where_self(&x.f_isfinite()?.f_all()?, &less)?;
    Ok(x.f_clamp_tensor(Some(&limit.f_neg()?), Some(&limit))?)
}
