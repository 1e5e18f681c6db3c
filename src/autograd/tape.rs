//! The tape of block checkpointing: the blocks that ran, and the way back through them.

use tch::{no_grad_guard, Device, Kind, Tensor};

use crate::autograd::known_gradient::inner_product;
use crate::autograd::scratch::Recorded;
use crate::autograd::segment::{given, leaf, Segment, Way};
use crate::device::grad_mode::grad_is_enabled;
use crate::error::Result;
use crate::storage::info::is_float;

/// The blocks to recompute, counted in the order in which they run; the others keep their activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Blocks {
    /// All blocks: the least memory.
    #[default]
    All,
    /// Every n-th block: with 2 the second, the fourth, ….
    EveryNth(usize),
    /// The first blocks, this many: the last ones have freed their activations when the first ones need the memory.
    First(usize),
}

impl Blocks {
    /// As few of `blocks` blocks as possible, so that the activations of the others, `block_bytes` bytes each, fit into
    /// `budget_bytes` bytes.
    ///
    /// ```
    /// # use ln_tuning::recompute::Blocks;
    /// assert_eq!(Blocks::within(1 << 30, 300 << 20, 32), Blocks::First(29));
    /// ```
    pub fn within(budget_bytes: usize, block_bytes: usize, blocks: usize) -> Self {
        Blocks::First(blocks - blocks.min(budget_bytes / block_bytes.max(1)))
    }

    fn include(self, block: usize) -> bool {
        match self {
            Blocks::All => true,
            Blocks::EveryNth(n) => block % n.max(1) == n.max(1) - 1,
            Blocks::First(count) => block < count,
        }
    }
}

/// The record of the blocks that the backward pass will run again.
pub struct Tape<'a> {
    blocks: Blocks,
    preserve_rng_state: bool,
    /// The number of blocks run so far.
    count: usize,
    /// False if autograd alone goes backward.
    walked: bool,
    segments: Vec<Segment<'a>>,
}

impl<'a> Tape<'a> {
    /// A tape that records nothing: blocks run once, and autograd keeps their graphs.
    pub fn off() -> Self {
        Tape { walked: false, ..Tape::new(Blocks::First(0), true) }
    }

    /// One that the backward pass walks.
    pub(super) fn new(blocks: Blocks, preserve_rng_state: bool) -> Self {
        Tape { blocks, preserve_rng_state, count: 0, walked: true, segments: Vec::new() }
    }

    /// True if a block's second run resets the generators.
    pub(super) fn has_seed(&self) -> bool {
        self.segments.iter().any(|segment| segment.way.has_seed())
    }

    /// Runs a block. The result is that of `block(input)`, and so are all gradients, including those of tensors that
    /// `block` captures.
    ///
    /// The block must compute the same when it runs again. Do not change its input or output in place, and let nothing
    /// with a graph leave it but its result. Under `no_grad`, and if nothing in or before the block is trainable, it
    /// runs once.
    ///
    /// # Errors
    /// Those of `block`.
    pub fn run(
        &mut self,
        input: &Tensor,
        block: impl Fn(&Tensor) -> Result<Tensor> + 'a,
    ) -> Result<Tensor> {
        let block = move |inputs: &[Tensor]| Ok(vec![block(&inputs[0])?]);
        Ok(self.run_many(&[input], block)?.remove(0))
    }

    /// [`run`](Self::run) for a block of several inputs and outputs.
    ///
    /// # Errors
    /// Those of `block`.
    pub fn run_many(
        &mut self,
        inputs: &[&Tensor],
        block: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a,
    ) -> Result<Vec<Tensor>> {
        let recomputed = self.next()?;
        self.record(recomputed, inputs, block)
    }

    /// [`run`](Self::run) for one block and several batches, each with a closure of its own. The last batch goes first,
    /// so that the backward pass comes to the first one first.
    #[cfg(feature = "models")]
    pub(crate) fn run_batches<F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a>(
        &mut self,
        inputs: &[Tensor],
        blocks: impl DoubleEndedIterator<Item = F> + ExactSizeIterator,
    ) -> Result<Vec<Tensor>> {
        let recomputed = self.next()?;
        let mut outputs = Vec::with_capacity(inputs.len());
        for (input, block) in inputs.iter().zip(blocks).rev() {
            outputs.push(self.record(recomputed, &[input], block)?.swap_remove(0));
        }
        outputs.reverse();
        Ok(outputs)
    }

    /// True if graphs end behind each block, and the next block's begins with its inputs.
    #[cfg(feature = "models")]
    pub(crate) fn cuts(&self) -> bool {
        self.walked
    }

    /// True if nothing that a block computes is kept for the backward pass.
    #[cfg(feature = "models")]
    pub(crate) fn keeps_nothing(&self) -> Result<bool> {
        let all = matches!(self.blocks, Blocks::All | Blocks::EveryNth(0 | 1));
        Ok(all || !grad_is_enabled()?)
    }

    /// Counts a block; true if it will be run again.
    fn next(&mut self) -> Result<bool> {
        let recomputed = self.blocks.include(self.count) && grad_is_enabled()?;
        self.count += 1;
        Ok(recomputed)
    }

    fn record(
        &mut self,
        recomputed: bool,
        inputs: &[&Tensor],
        block: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a,
    ) -> Result<Vec<Tensor>> {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
        if !recomputed && !self.walked {
            return block(&inputs);
        }
        if !recomputed {
            let (results, values) = Recorded::of(|| block(&inputs))?;
            if values.is_empty() {
                return Ok(results);
            }
            values.release();
            let outputs = results.iter().map(|result| result.requires_grad().then(|| leaf(result)));
            let outputs = outputs.map(Option::transpose).collect::<Result<Vec<_>>>()?;
            let given = given(&results, &outputs);
            self.segments.push(Segment { way: Way::Kept { results, values }, outputs });
            return Ok(given);
        }
        let seed = self.preserve_rng_state.then(draw_seed).transpose()?;
        if let Some(seed) = seed {
            tch::manual_seed(seed);
        }
        let results = if inputs.iter().any(Tensor::requires_grad) {
            // A guard: gradients come back also where the block panics.
            let _without_graph = no_grad_guard();
            block(&inputs)?
        } else {
            // A graph of the result shows that the block has trainable tensors; it is dropped at once.
            let (results, values) = Recorded::of(|| block(&inputs))?;
            if !results.iter().any(Tensor::requires_grad) {
                return Ok(results);
            }
            values.release();
            results
        };
        let outputs = results.iter().map(|result| {
            let wanted = is_float(result.f_kind()?);
            wanted.then(|| leaf(result)).transpose()
        });
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let given = given(&results, &outputs);
        let way = Way::Again { block: Box::new(block), inputs, seed };
        self.segments.push(Segment { way, outputs });
        Ok(given)
    }

    /// The backward pass, from the losses through the blocks, last to first.
    ///
    /// A block's second run starts from its inputs with their graphs, so that the engine continues below them to the
    /// leaves of earlier blocks, through any operations between. Graphs are retained, since blocks may share them.
    pub(super) fn walk(mut self, losses: Vec<Tensor>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let several = losses.len() > 1;
        let mut gradients: Vec<Option<Tensor>> = inputs.iter().map(|_| None).collect();
        let mut of_outputs: Vec<Vec<Option<Tensor>>> =
            self.segments.iter().map(|s| s.outputs.iter().map(|_| None).collect()).collect();
        for loss in losses {
            self.pull(loss, inputs, several, &mut gradients, &mut of_outputs)?;
        }
        while let (Some(segment), Some(given)) = (self.segments.pop(), of_outputs.pop()) {
            if given.iter().all(Option::is_none) {
                continue;
            }
            let (results, values) = segment.way.go()?;
            let pairs = results.iter().zip(&given);
            let pairs: Vec<_> = pairs
                .filter_map(|(result, gradient)| Some((result, gradient.as_ref()?)))
                .filter(|(result, _)| result.requires_grad())
                .collect();
            if !pairs.is_empty() {
                let root = inner_product(&pairs)?;
                self.pull(root, inputs, several, &mut gradients, &mut of_outputs)?;
            }
            drop(results);
            values.release();
        }
        Ok(gradients.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Adds the gradients of `root` with respect to the inputs and to the outputs of the remaining blocks. Those of the
    /// inputs are the sums of all batches if there are `several`, and then in f32 at least.
    fn pull(
        &self,
        root: Tensor,
        inputs: &[Tensor],
        several: bool,
        gradients: &mut [Option<Tensor>],
        of_outputs: &mut [Vec<Option<Tensor>>],
    ) -> Result<()> {
        let leaves = self.segments.iter().flat_map(|segment| segment.outputs.iter().flatten());
        let all: Vec<&Tensor> = inputs.iter().chain(leaves).collect();
        let kept = several || !self.segments.is_empty();
        let found = Tensor::f_run_backward(&[root], &all, kept, false)?;
        let of_leaves = of_outputs.iter_mut().zip(&self.segments).flat_map(|(sums, segment)| {
            sums.iter_mut().zip(&segment.outputs).filter(|(_, leaf)| leaf.is_some())
        });
        let sums = gradients.iter_mut().chain(of_leaves.map(|(sum, _)| sum));
        for (at, (sum, found)) in sums.zip(found).enumerate() {
            if found.defined() {
                let low = [Kind::Half, Kind::BFloat16].contains(&found.f_kind()?);
                *sum = Some(match sum.take() {
                    None => found,
                    Some(sum) if several && low && at < inputs.len() => {
                        sum.f_to_kind(Kind::Float)?.f_add(&found)?
                    }
                    Some(sum) => sum.f_add(&found)?,
                });
            }
        }
        Ok(())
    }
}

/// A seed from the CPU's generator, so that no other device is waited for.
pub(super) fn draw_seed() -> Result<i64> {
    let drawn = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?;
    Ok(drawn.f_int64_value(&[0])?)
}
