//! Backward passes of the optimiser: gradients of the selected tensors only.

use tch::{no_grad, with_grad, Tensor};

use super::loss_scale::Factor;
use super::optimizer::{inputs, Optimizer};
use crate::adapter::attachment::Attachment;
use crate::adapter::weights::Adapter;
use crate::autograd::recompute::{Recompute, Tape};
use crate::error::{refuse, Result};
use crate::storage::info::is_float;

impl Optimizer {
    /// Adds the gradient of `loss`, a scalar, to the gradients so far. Frees the graph.
    ///
    /// # Errors
    /// `NoGradient` if `loss` is not a scalar or depends on no selected tensor; `InvalidState` if the adapter is not
    /// active, merged, disabled or frozen, or if the loss was computed before weights changed that its gradient needs.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.with_adapter(|this, attachment| this.add_backward(attachment, loss, 1, false))
    }

    /// Adds the gradient of `loss / parts`; without those so far, if it is the `first`.
    pub(super) fn add_backward(
        &mut self,
        attachment: &mut Attachment,
        loss: &Tensor,
        parts: i64,
        first: bool,
    ) -> Result<()> {
        check_loss(loss)?;
        let factor = self.loss_scale.factor();
        let scaled = with_grad(|| factor.scaled(loss, parts))?;
        attachment.check_trainable(&self.adapter)?;
        let inputs = inputs(attachment, &self.adapter)?;
        let found = Tensor::f_run_backward(&[scaled], &inputs, false, false)?;
        self.add(attachment, &found, &factor, first)
    }

    /// Adds one gradient per slot, of a loss that was multiplied by `factor`.
    fn add(
        &mut self,
        attachment: &mut Attachment,
        found: &[Tensor],
        factor: &Factor,
        first: bool,
    ) -> Result<()> {
        if !found.iter().any(Tensor::defined) {
            refuse!(
                NoGradient,
                "the loss depends on no selected tensor: check the selection, and compute the loss again if it is from \
                 before this adapter came into use"
            );
        }
        let (Adapter { flat, gradients, .. }, leaves) = attachment.graded(&self.adapter)?;
        if first {
            gradients.clear(&leaves)?;
        } else {
            gradients.take_in(flat, &leaves)?;
        }
        gradients.add(flat, &leaves, found, |all| factor.unscale(all))?;
        self.ranks.renew();
        Ok(())
    }

    /// [`backward`](Self::backward) with block checkpointing: `forward` computes the loss and runs its blocks through
    /// the tape. Returns the loss.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), and those of `forward`.
    ///
    /// ```
    /// # use tch::{nn, nn::Module, Device, Kind, Tensor};
    /// # use ln_tuning::{recompute::Recompute, AdamW, LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # let block = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// # let x = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
    /// # let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// # let mut opt = tuned.optimizer(AdamW::default(), 5e-3)?;
    /// opt.zero_grad()?;
    /// let loss = opt.backward_recompute(&Recompute::default(), |tape| {
    ///     Ok(tape.run(&x, |x| Ok(block.forward(x)))?.square().mean(Kind::Float))
    /// })?;
    /// opt.step()?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    #[doc(alias = "gradient_checkpointing")]
    pub fn backward_recompute<'a>(
        &mut self,
        recompute: &Recompute,
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let forward = |tape: &mut Tape<'a>| Ok(vec![forward(tape)?]);
        Ok(self.backward_recompute_many(recompute, forward)?.swap_remove(0))
    }

    /// [`backward_recompute`](Self::backward_recompute) of several losses at once, those of the batches of one step:
    /// adds the gradient of their sum, and returns them. `Decoder::losses_with` computes them.
    ///
    /// # Errors
    /// As [`backward_recompute`](Self::backward_recompute).
    pub fn backward_recompute_many<'a>(
        &mut self,
        recompute: &Recompute,
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let factor = self.loss_scale.factor();
        let scaled = |tape: &mut Tape<'a>| scaled(&forward(tape)?, &factor);
        let mut losses =
            self.add_gradients(&factor, |inputs| recompute.gradients_of_many(inputs, scaled))?;
        no_grad(|| losses.iter_mut().try_for_each(|loss| factor.unscale(loss)))?;
        Ok(losses)
    }

    /// Adds the gradients that `compute` returns for the selected tensors, in the given order, for backward passes
    /// other than [`backward`](Self::backward) and [`backward_recompute`](Self::backward_recompute). An undefined
    /// tensor means no gradient. The loss scale is not applied. Returns the other value of `compute`, usually the loss.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); `ShapeMismatch` or `KindMismatch` if a gradient does not have its tensor's
    /// shape, or no floating-point numbers.
    pub fn backward_with<T>(
        &mut self,
        compute: impl FnOnce(&[Tensor]) -> Result<(T, Vec<Tensor>)>,
    ) -> Result<T> {
        self.add_gradients(&Factor::ONE, compute)
    }

    /// Adds the gradients of a loss that was multiplied by `factor`.
    fn add_gradients<T>(
        &mut self,
        factor: &Factor,
        compute: impl FnOnce(&[Tensor]) -> Result<(T, Vec<Tensor>)>,
    ) -> Result<T> {
        let inputs = self.with_adapter(|this, attachment| {
            attachment.check_trainable(&this.adapter)?;
            inputs(attachment, &this.adapter)
        })?;
        let (value, found) = compute(&inputs)?;
        if found.len() != inputs.len() {
            refuse!(
                ShapeMismatch,
                "{} gradients for {} selected tensors",
                found.len(),
                inputs.len()
            );
        }
        for (gradient, input) in found.iter().zip(&inputs) {
            if !gradient.defined() {
                continue;
            }
            if !is_float(gradient.f_kind()?) {
                refuse!(
                    KindMismatch,
                    "a gradient has kind {:?}, expected floating-point numbers",
                    gradient.f_kind()?
                );
            }
            if gradient.size() != input.size() {
                refuse!(
                    ShapeMismatch,
                    "a gradient of shape {:?} for a tensor of shape {:?}",
                    gradient.size(),
                    input.size()
                );
            }
        }
        self.with_adapter(|this, attachment| this.add(attachment, &found, factor, false))?;
        Ok(value)
    }
}

/// Each of the losses, which must be scalars, times the loss scale.
pub(super) fn scaled(losses: &[Tensor], factor: &Factor) -> Result<Vec<Tensor>> {
    let scaled = losses.iter().map(|loss| {
        check_loss(loss)?;
        factor.scaled(loss, 1)
    });
    scaled.collect()
}

pub(super) fn check_loss(loss: &Tensor) -> Result<()> {
    if !loss.defined() || loss.numel() != 1 {
        let shape = if loss.defined() { format!("{:?}", loss.size()) } else { "nothing".into() };
        refuse!(NoGradient, "the loss must be a scalar, found {shape}: take its mean or sum");
    }
    // libtorch's engine reads freed memory for a root without a graph.
    if !loss.requires_grad() {
        refuse!(
            NoGradient,
            "the loss depends on no trainable tensor: was it computed under `no_grad`, detached, or \
             before the adapter was active?"
        );
    }
    Ok(())
}
