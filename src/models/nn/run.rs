//! Blocks of a transformer, run one after the other: through the tape of block checkpointing, or with a cache of keys
//! and values.
//!
//! The last sum of a block is computed together with the norm that the next block begins with, or with the norm behind
//! the last block.

use std::cell::Cell;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::block::{optional, Block};
use super::cache::Cache;
use super::context::Context;
use super::mask::Mask;
use super::norm::Norm;
use super::rows::Rows;
use crate::autograd::recompute::Tape;
use crate::autograd::scratch::Pass;
use crate::device::grad_mode::grad_is_enabled;
use crate::device::transfer::check_not_captured;
use crate::error::Result;
use crate::kernels::fused;

/// The way in which blocks are run.
pub(in crate::models) enum Through<'t, 'm> {
    Tape(&'t mut Tape<'m>),
    Cache(&'t mut Cache),
}

/// The norm of a block's input, where the block before has computed it.
type Ahead = Rc<Cell<Option<Tensor>>>;

/// True if the graph of a block may go on in what it computes for the next, beside its output.
fn is_whole(tape: &Tape) -> Result<bool> {
    Ok(!tape.cuts() || !grad_is_enabled()?)
}

/// The block at `place` as the tape gets it. The norm behind it, `next`, is not computed if it is the last and the tape
/// cuts the graph: no block would go back through it.
fn taped<'m>(
    blocks: &'m [Block],
    place: usize,
    context: &Rc<Context>,
    ahead: &Ahead,
    next: Option<&'m Norm>,
    whole: bool,
) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'm {
    let (context, ahead) = (context.clone(), ahead.clone());
    let next = next.filter(|_| whole || place + 1 < blocks.len());
    move |inputs: &[Tensor]| {
        // A block that will be run again has no graph yet, and finds nothing the second time.
        let handed = whole || !grad_is_enabled()?;
        let normed = ahead.take().filter(|_| handed);
        let (input, source) = ((&inputs[0], normed), inputs.get(1));
        let next = next.filter(|_| handed);
        let (hidden, normed) =
            blocks[place].forward(input, &context, source, (None, None), next)?;
        ahead.set(normed);
        Ok(vec![hidden])
    }
}

/// The norm behind the block at `place`, that of the next block or `last`, if it is computed with the sum in front of it.
fn next_norm<'m>(
    blocks: &'m [Block],
    (place, hidden): (usize, &Tensor),
    context: &Context,
    last: Option<&'m Norm>,
) -> Result<Option<&'m Norm>> {
    let next = blocks.get(place + 1).map_or(last, Block::first_norm);
    // Behind the block, something may be added. By operators, a norm waits until the block has freed its memory.
    let together = !context.adds_behind(place) && fused::is_for(hidden)?;
    Ok(next.filter(|_| together))
}

/// The end of a run: the hidden states behind the last norm, which the last block may have computed.
fn finished(
    hidden: Tensor,
    context: &Context,
    ahead: &Ahead,
    last: Option<&Norm>,
) -> Result<Tensor> {
    if let Some(normed) = ahead.take() {
        return Ok(normed);
    }
    let _rows = Rows::enter(context.rows.clone());
    optional(last, &hidden)
}

/// Runs blocks one after the other, and each for all batches before the next: what a block needs is then fetched once
/// for all of them, here and, through the tape, in the backward pass. The norm `last` stands behind them.
pub(in crate::models) fn run_batches<'m>(
    blocks: &'m [Block],
    mut hidden: Vec<Tensor>,
    contexts: &[Rc<Context>],
    last: Option<&'m Norm>,
    tape: &mut Tape<'m>,
) -> Result<Vec<Tensor>> {
    let _pass = Pass::begin();
    let whole = is_whole(tape)?;
    let ahead: Vec<Ahead> = contexts.iter().map(|_| Ahead::default()).collect();
    for place in 0..blocks.len() {
        let of = hidden.iter().zip(contexts).zip(&ahead);
        let runs = of.map(|((hidden, context), ahead)| {
            let next = next_norm(blocks, (place, hidden), context, last)?;
            Ok(taped(blocks, place, context, ahead, next, whole))
        });
        let runs = runs.collect::<Result<Vec<_>>>()?;
        let outputs = tape.run_batches(&hidden, runs.into_iter())?.into_iter().zip(contexts);
        hidden = outputs
            .map(|(output, context)| context.behind(place, output))
            .collect::<Result<_>>()?;
    }
    let ends = hidden.into_iter().zip(contexts).zip(&ahead);
    ends.map(|((hidden, context), ahead)| finished(hidden, context, ahead, last)).collect()
}

/// Runs blocks one after the other, and the norm `last` behind them. `source` is the other sequence,
/// `[batch, length, size]`.
pub(in crate::models) fn run<'m>(
    blocks: &'m [Block],
    mut hidden: Tensor,
    context: &Rc<Context>,
    source: Option<&Tensor>,
    layerdrop: f64,
    last: Option<&'m Norm>,
    through: &mut Through<'_, 'm>,
) -> Result<Tensor> {
    let _pass = Pass::begin();
    let drops = context.train && layerdrop > 0.;
    let ahead = Ahead::default();
    for (index, block) in blocks.iter().enumerate() {
        if drops {
            check_not_captured("whether a layer is dropped")?;
            let drawn = Tensor::f_rand([1], (Kind::Float, Device::Cpu))?;
            if drawn.f_double_value(&[0])? < layerdrop {
                continue;
            }
        }
        let next = next_norm(blocks, (index, &hidden), context, last)?.filter(|_| !drops);
        hidden = match through {
            Through::Cache(cache) => {
                let [own, across] = cache.slots(index);
                let slots = (Some(own), Some(across));
                let input = (&hidden, ahead.take());
                let (hidden, normed) = block.forward(input, context, source, slots, next)?;
                ahead.set(normed);
                hidden
            }
            Through::Tape(tape) => {
                let whole = is_whole(tape)?;
                let inputs: Vec<&Tensor> = [&hidden].into_iter().chain(source).collect();
                let block = taped(blocks, index, context, &ahead, next, whole);
                tape.run_many(&inputs, block)?.swap_remove(0)
            }
        };
        hidden = context.behind(index, hidden)?;
    }
    finished(hidden, context, &ahead, last)
}

/// Runs blocks that share one mask and nothing else, and the norm `last` behind them.
pub(in crate::models) fn run_all<'m>(
    blocks: &'m [Block],
    hidden: Tensor,
    mask: Mask,
    train: bool,
    last: Option<&'m Norm>,
    tape: &mut Tape<'m>,
) -> Result<Tensor> {
    let context = Rc::new(Context::new(train, hidden.f_kind()?, mask)?);
    run(blocks, hidden, &context, None, 0., last, &mut Through::Tape(tape))
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
            hidden = run(block, hidden, &context, None, 0., None, &mut Through::Tape(tape))?;
        }
        let here = at.iter_mut().zip(depths).filter(|(_, wanted)| **wanted == depth);
        here.for_each(|(at, _)| *at = Some(hidden.shallow_clone()));
    }
    Ok(at.into_iter().flatten().collect())
}
