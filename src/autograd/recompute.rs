//! Block checkpointing: a block runs without a graph in the forward pass, and again with one in the backward pass.
//!
//! Activations are then held for one block at a time, at the price of a second forward pass. tch has no custom autograd
//! functions, so the second run cannot happen inside `loss.backward()`: [`Recompute::gradients`] does the forward pass
//! and then goes back through its blocks.
//!
//! ```
//! # use tch::{nn, nn::Module, Device, Kind, Tensor};
//! use ln_tuning::recompute::{Blocks, Recompute};
//! use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
//! # let vs = nn::VarStore::new(Device::Cpu);
//! # let x = Tensor::randn([4, 8], (Kind::Float, Device::Cpu));
//! let blocks: Vec<_> = (0..4) // the blocks of any model
//!     .map(|i| {
//!         let path = vs.root() / "layers" / i;
//!         nn::seq()
//!             .add(nn::layer_norm(&path / "norm", vec![8], Default::default()))
//!             .add(nn::linear(&path / "linear", 8, 8, Default::default()))
//!     })
//!     .collect();
//!
//! let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
//! let mut opt = tuned.optimizer(AdamW::default(), 5e-3)?;
//! let recompute = Recompute::new(Blocks::All);
//! for _step in 0..3 {
//!     opt.zero_grad()?;
//!     let loss = opt.backward_recompute(&recompute, |tape| {
//!         let mut h = x.shallow_clone();
//!         for block in &blocks {
//!             h = tape.run(&h, move |h| Ok(block.forward(h)))?;
//!         }
//!         Ok(h.square().mean(Kind::Float))
//!     })?;
//!     opt.clip_grad_norm(1.0)?;
//!     opt.step()?;
//!     # assert!(loss.double_value(&[]) > 0.);
//! }
//! # Ok::<(), ln_tuning::Error>(())
//! ```

use tch::{no_grad_guard, Device, Kind, Tensor};

use crate::autograd::known_gradient::{grad_is_enabled, inner_product};
use crate::autograd::scratch::{Pass, Recorded};
use crate::autograd::segment::{given, leaf, Segment, Way};
use crate::error::{refuse, Result};
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

/// Computes losses and their gradients with block checkpointing.
#[derive(Debug, Clone, Copy)]
#[doc(alias = "gradient_checkpointing")]
pub struct Recompute {
    blocks: Blocks,
    preserve_rng_state: bool,
}

impl Default for Recompute {
    fn default() -> Self {
        Recompute::new(Blocks::All)
    }
}

impl Recompute {
    /// Checkpoints these blocks.
    pub fn new(blocks: Blocks) -> Self {
        Recompute { blocks, preserve_rng_state: true }
    }

    /// Lets the second run of a block draw the same random numbers as the first, which dropout needs. Default: true.
    ///
    /// tch can seed the generators but not save their state, so each block gets a seed, drawn from the CPU's generator.
    /// This seeds the generators of all devices, for all threads. Blocks without random numbers do not need it.
    pub fn preserve_rng_state(mut self, preserve_rng_state: bool) -> Self {
        self.preserve_rng_state = preserve_rng_state;
        self
    }

    /// Runs `forward`, which runs its blocks through the [`Tape`] and returns a scalar loss. Returns the loss, without
    /// its graph, and its gradients with respect to `inputs`; a gradient is undefined if the loss does not depend on
    /// that input.
    ///
    /// # Errors
    /// Those of `forward`; `NoGradient` if the loss is not a scalar or depends on no trainable tensor.
    pub fn gradients<'a>(
        &self,
        inputs: &[Tensor],
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Tensor>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let forward = |tape: &mut Tape<'a>| Ok(vec![forward(tape)?]);
        let (mut losses, gradients) = self.gradients_of_many(inputs, forward)?;
        Ok((losses.remove(0), gradients))
    }

    /// [`gradients`](Self::gradients) of the sum of several losses, those of the batches of one step. Where `forward`
    /// runs each block for all batches before the next, as `Decoder::losses_with` does, the backward pass does so too,
    /// and what a block needs is fetched once in each pass, not once per batch.
    ///
    /// Returns the losses, without their graphs, and the sums of their gradients, in f32 at least. These are added in
    /// the order of the losses if `forward` ran the last batch first.
    ///
    /// # Errors
    /// As [`gradients`](Self::gradients), for each loss; `NoGradient` if there is none.
    pub fn gradients_of_many<'a>(
        &self,
        inputs: &[Tensor],
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Vec<Tensor>>,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        self.gradients_of_made(forward, || inputs.iter().map(Tensor::shallow_clone).collect())
    }

    /// [`gradients_of_many`](Self::gradients_of_many) with respect to tensors that `forward` makes: `inputs` gives them
    /// when it is done.
    pub(crate) fn gradients_of_made<'a>(
        &self,
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Vec<Tensor>>,
        inputs: impl FnOnce() -> Vec<Tensor>,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let _pass = Pass::begin();
        let mut tape = Tape { options: *self, count: 0, walked: true, segments: Vec::new() };
        let losses = forward(&mut tape)?;
        let inputs = inputs();
        if losses.is_empty() {
            refuse!(NoGradient, "there is no loss to go backward from");
        }
        for loss in &losses {
            if loss.numel() != 1 || !loss.requires_grad() {
                refuse!(
                    NoGradient,
                    "the loss must be a scalar that depends on a trainable tensor, found shape {:?}{}",
                    loss.size(),
                    if loss.requires_grad() { "" } else { ", without a graph" }
                );
            }
        }
        let values = losses.iter().map(|loss| Ok(loss.f_detach()?)).collect::<Result<_>>()?;
        // The seed for afterwards: the second runs reset the generators to states of the forward pass.
        let seed = tape.segments.iter().any(|segment| segment.way.has_seed());
        let seed = seed.then(draw_seed).transpose()?;
        let gradients = tape.walk(losses, &inputs);
        if let Some(seed) = seed {
            tch::manual_seed(seed);
        }
        Ok((values, gradients?))
    }

    /// Adds the [`gradients`](Self::gradients) to the `.grad()` of `inputs`, as `loss.backward()` would, for tch's
    /// optimisers. Returns the loss.
    ///
    /// # Errors
    /// Those of `gradients`.
    pub fn backward<'a>(
        &self,
        inputs: &[Tensor],
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (loss, gradients) = self.gradients(inputs, forward)?;
        let pairs: Vec<_> = inputs.iter().zip(&gradients).filter(|(_, g)| g.defined()).collect();
        if !pairs.is_empty() {
            inner_product(&pairs)?.f_backward()?;
        }
        Ok(loss)
    }
}

/// The record of the blocks that the backward pass will run again.
pub struct Tape<'a> {
    options: Recompute,
    /// The number of blocks run so far.
    count: usize,
    /// False if autograd alone goes backward.
    walked: bool,
    segments: Vec<Segment<'a>>,
}

impl<'a> Tape<'a> {
    /// A tape that records nothing: blocks run once, and autograd keeps their graphs.
    pub fn off() -> Self {
        let options = Recompute::new(Blocks::First(0));
        Tape { options, count: 0, walked: false, segments: Vec::new() }
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
        let all = matches!(self.options.blocks, Blocks::All | Blocks::EveryNth(0 | 1));
        Ok(all || !grad_is_enabled()?)
    }

    /// Counts a block; true if it will be run again.
    fn next(&mut self) -> Result<bool> {
        let recomputed = self.options.blocks.include(self.count) && grad_is_enabled()?;
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
        let seed = self.options.preserve_rng_state.then(draw_seed).transpose()?;
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
    fn walk(mut self, losses: Vec<Tensor>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
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
fn draw_seed() -> Result<i64> {
    let drawn = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?;
    Ok(drawn.f_int64_value(&[0])?)
}
