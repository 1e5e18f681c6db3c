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

use tch::Tensor;

use crate::autograd::known_gradient::inner_product;
use crate::autograd::scratch::Pass;
use crate::autograd::tape::draw_seed;
pub use crate::autograd::tape::{Blocks, Tape};
use crate::error::{refuse, Result};

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
        let mut tape = Tape::new(self.blocks, self.preserve_rng_state);
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
        let seed = tape.has_seed().then(draw_seed).transpose()?;
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
