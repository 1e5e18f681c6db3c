//! The optimiser: the methods of `tch::nn::Optimizer` over one flat buffer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tch::{no_grad, Tensor};

use super::algorithm::{check_range, Algorithm};
use super::gradients::Gradients;
use super::group::{check_lr, Group};
use super::state::State;
use crate::adapter::attachment::{lock, Attachment};
use crate::adapter::LnTuningModel;
use crate::autograd::recompute::{Recompute, Tape};
use crate::error::{refusal, refuse, Result};

/// Trains one adapter. Created by [`LnTuningModel::optimizer`](crate::LnTuningModel::optimizer).
///
/// It has the methods of [`tch::nn::Optimizer`], each returning a `Result`. Gradients, moments and masters are flat
/// buffers, so that a step takes about ten kernels for a model of any depth, and never waits for the device.
///
/// The `backward…` methods compute gradients of the selected tensors only and keep them in the optimiser: the `.grad()`
/// of the variables stays undefined. Gradients from `loss.backward()` are used too.
///
/// ```
/// # use tch::{nn, nn::Module, Device, Kind, Tensor};
/// use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
/// # tch::manual_seed(0);
/// # let vs = nn::VarStore::new(Device::Cpu);
/// # let net = nn::seq()
/// #     .add(nn::linear(vs.root() / "lin", 4, 4, Default::default()))
/// #     .add(nn::layer_norm(vs.root() / "norm", vec![4], Default::default()));
/// # let (x, y) = (Tensor::randn([8, 4], (Kind::Float, Device::Cpu)), Tensor::zeros([8, 4], (Kind::Float, Device::Cpu)));
/// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default().target_modules(["norm"]))?;
/// let mut opt = tuned.optimizer(AdamW::default(), 1e-2)?;
/// let before = net.forward(&x).mse_loss(&y, tch::Reduction::Mean);
/// for _ in 0..50 {
///     let loss = net.forward(&x).mse_loss(&y, tch::Reduction::Mean);
///     opt.backward_step_clip_norm(&loss, 1.0)?;
/// }
/// let after = net.forward(&x).mse_loss(&y, tch::Reduction::Mean);
/// assert!(after.double_value(&[]) < before.double_value(&[]));
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    attachment: Arc<Mutex<Attachment>>,
    adapter: String,
    adapter_id: u64,
    pub(super) groups: BTreeMap<usize, Group>,
    /// The parameter group of each slot.
    slot_groups: Vec<usize>,
    state: State,
    gradients: Gradients,
    pub(super) accumulation: i64,
    accumulated: i64,
    pub(super) loss_scale: f64,
}

impl LnTuningModel {
    /// An optimiser for the active adapter: [`AdamW`](tch::nn::AdamW) or [`Sgd`](tch::nn::Sgd) of tch, with their
    /// settings.
    ///
    /// # Errors
    /// `InvalidArgument` for a setting out of range; `InvalidState` if no adapter is active, or the active one was
    /// loaded for inference, merged or disabled.
    pub fn optimizer(&self, algorithm: impl Into<Algorithm>, lr: f64) -> Result<Optimizer> {
        let active = self.attachment().active.clone().ok_or_else(|| {
            refusal!(InvalidState, "no adapter is active: call `set_adapter` first")
        })?;
        Optimizer::new(self.attachment.clone(), &active, algorithm.into(), lr)
    }
}

impl Optimizer {
    fn new(
        attachment: Arc<Mutex<Attachment>>,
        adapter: &str,
        algorithm: Algorithm,
        lr: f64,
    ) -> Result<Self> {
        algorithm.check()?;
        check_lr(lr)?;
        let shared = attachment.clone();
        let mut guard = lock(&shared);
        guard.sync()?;
        guard.check_trainable(adapter)?;
        let own = guard.adapter(adapter)?;
        let slot_groups: Vec<usize> = guard.trained(adapter)?.map(|v| v.group).collect();
        let groups = slot_groups.iter().map(|g| (*g, Group { algorithm, lr })).collect();
        let slots = own.flat.slots().len();
        Ok(Optimizer {
            attachment,
            adapter: adapter.to_owned(),
            adapter_id: own.id,
            groups,
            slot_groups,
            state: State::new(algorithm, slots),
            gradients: Gradients::new(guard.gradients(adapter)?, slots),
            accumulation: 1,
            accumulated: 0,
            loss_scale: 1.,
        })
    }

    /// Clears all gradients, including those in the variables.
    ///
    /// # Errors
    /// If the adapter was deleted, or the variables were changed in a way that cannot be followed.
    pub fn zero_grad(&mut self) -> Result<()> {
        self.accumulated = 0;
        self.with_adapter(|this, _| this.gradients.clear())
    }

    /// Adds the gradient of `loss`, a scalar, to the gradients so far. Frees the graph.
    ///
    /// # Errors
    /// `NoGradient` if `loss` is not a scalar or depends on no selected tensor; `InvalidState` if the adapter is not
    /// active, merged, disabled or frozen.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        check_loss(loss)?;
        let scale = self.loss_scale;
        let scaled = if scale == 1. { loss.shallow_clone() } else { loss.f_mul_scalar(scale)? };
        self.with_adapter(|this, attachment| {
            attachment.check_trainable(&this.adapter)?;
            let inputs = inputs(attachment, &this.adapter)?;
            let found = Tensor::f_run_backward(&[scaled], &inputs, false, false)?;
            this.gradients.add(&attachment.adapter(&this.adapter)?.flat, found, scale)
        })
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
    /// # let mut opt = tuned.optimizer(AdamW::default(), 1e-3)?;
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
        let scale = self.loss_scale;
        let scaled = |tape: &mut Tape<'a>| match forward(tape)? {
            loss if scale == 1. => Ok(loss),
            loss => Ok(loss.f_mul_scalar(scale)?),
        };
        let loss = self.add_gradients(scale, |inputs| recompute.gradients(inputs, scaled))?;
        Ok(if scale == 1. { loss } else { loss.f_div_scalar(scale)? })
    }

    /// Adds the gradients that `compute` returns for the selected tensors, in the given order, for backward passes
    /// other than [`backward`](Self::backward) and [`backward_recompute`](Self::backward_recompute). An undefined
    /// tensor means no gradient. The loss scale is not applied. Returns the other value of `compute`, usually the loss.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); `ShapeMismatch` if a gradient does not have its tensor's shape.
    pub fn backward_with<T>(
        &mut self,
        compute: impl FnOnce(&[Tensor]) -> Result<(T, Vec<Tensor>)>,
    ) -> Result<T> {
        self.add_gradients(1., compute)
    }

    /// Adds the gradients of a loss that was multiplied by `scale`.
    fn add_gradients<T>(
        &mut self,
        scale: f64,
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
            if gradient.defined() && gradient.size() != input.size() {
                refuse!(
                    ShapeMismatch,
                    "a gradient of shape {:?} for a tensor of shape {:?}",
                    gradient.size(),
                    input.size()
                );
            }
        }
        self.with_adapter(|this, attachment| {
            this.gradients.add(&attachment.adapter(&this.adapter)?.flat, found, scale)
        })?;
        Ok(value)
    }

    /// Updates the weights from the gradients. As in PyTorch, a tensor without a gradient does not change, by weight
    /// decay neither, and the gradients stay until [`zero_grad`](Self::zero_grad).
    ///
    /// # Errors
    /// `NoGradient` if there is no gradient; `InvalidState` as for [`backward`](Self::backward).
    pub fn step(&mut self) -> Result<()> {
        self.with_adapter(|this, attachment| {
            attachment.check_trainable(&this.adapter)?;
            this.collect(attachment)?;
            let adapter = attachment.adapter_mut(&this.adapter)?;
            let (groups, slot_groups) = (&this.groups, &this.slot_groups);
            this.state.update(&mut adapter.flat, &this.gradients, |slot| {
                let group = &groups[&slot_groups[slot]];
                (slot_groups[slot], group.algorithm, group.lr)
            })
        })
    }

    /// `zero_grad`, `backward` and `step` in one.
    ///
    /// # Errors
    /// Those of the three.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.accumulate(loss, |_| Ok(()))
    }

    /// [`backward_step`](Self::backward_step) with every gradient element clamped to ±`max` before the update.
    ///
    /// # Errors
    /// Those of `backward_step`, and `InvalidArgument` if `max` is not a positive number.
    pub fn backward_step_clip(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        check_max(max)?;
        self.accumulate(loss, |this| this.clip_grad_value(max))
    }

    /// [`backward_step`](Self::backward_step) with the gradient scaled to a Euclidean norm of at most `max` before
    /// the update.
    ///
    /// # Errors
    /// Those of `backward_step`, and `InvalidArgument` if `max` is not a positive number.
    pub fn backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        check_max(max)?;
        self.accumulate(loss, |this| this.clip_grad_norm(max).map(drop))
    }

    fn accumulate(
        &mut self,
        loss: &Tensor,
        clip: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if self.accumulated == 0 {
            self.zero_grad()?;
        }
        match self.accumulation {
            1 => self.backward(loss)?,
            steps => self.backward(&loss.f_div_scalar(steps)?)?,
        }
        self.accumulated += 1;
        if self.accumulated >= self.accumulation {
            clip(self)?;
            self.step()?;
            self.accumulated = 0;
        }
        Ok(())
    }

    /// Clamps every gradient element to ±`max`.
    ///
    /// # Errors
    /// `NoGradient` if there is none; `InvalidArgument` if `max` is not a positive number.
    pub fn clip_grad_value(&mut self, max: f64) -> Result<()> {
        check_max(max)?;
        self.with_gradients(|gradients| gradients.clip_value(max))
    }

    /// Scales the gradient so that its Euclidean norm over all selected tensors is at most `max`, as
    /// `torch.nn.utils.clip_grad_norm_` does. Returns the norm before clipping as a scalar on the model's device, so
    /// that nothing waits for the device until its value is read.
    ///
    /// # Errors
    /// `NoGradient` if there is none; `InvalidArgument` if `max` is not a positive number.
    pub fn clip_grad_norm(&mut self, max: f64) -> Result<Tensor> {
        check_max(max)?;
        self.with_gradients(|gradients| gradients.clip_norm(max))
    }

    /// The Euclidean norm of the gradient over all selected tensors, as a scalar on the model's device.
    ///
    /// # Errors
    /// `NoGradient` if there is none.
    pub fn grad_norm(&mut self) -> Result<Tensor> {
        self.with_gradients(|gradients| gradients.norm())
    }

    /// Every selected variable's name and a copy of its gradient, or `None` if it has no gradient.
    ///
    /// # Errors
    /// `UnknownAdapter` if the adapter was deleted.
    pub fn gradients(&mut self) -> Result<Vec<(String, Option<Tensor>)>> {
        self.with_adapter(|this, attachment| {
            let names = variable_names(attachment, &this.adapter)?;
            let layout = &attachment.adapter(&this.adapter)?.flat;
            this.gradients.follow(layout)?;
            this.gradients.named(layout, names)
        })
    }

    /// The variables that this optimiser trains.
    ///
    /// # Errors
    /// `UnknownAdapter` if the adapter was deleted.
    pub fn trainable_variables(&self) -> Result<Vec<Tensor>> {
        inputs(&lock(&self.attachment), &self.adapter)
    }

    /// The state to save for a later [`load_state_dict`](Self::load_state_dict): for every selected variable
    /// `<name>.step` and the buffers of the algorithm under the names of `torch.optim`, such as `<name>.exp_avg`.
    /// Tensors are copies, on the model's device.
    ///
    /// # Errors
    /// `UnknownAdapter` if the adapter was deleted.
    pub fn state_dict(&mut self) -> Result<Vec<(String, Tensor)>> {
        self.with_adapter(|this, attachment| {
            let names = variable_names(attachment, &this.adapter)?;
            this.state.save(&attachment.adapter(&this.adapter)?.flat, &names)
        })
    }

    /// Loads a state from [`state_dict`](Self::state_dict). On an error, the optimiser does not change.
    ///
    /// # Errors
    /// `MissingKeys`, `UnexpectedKeys`, `DuplicateKey`, `ShapeMismatch` or `KindMismatch` if it does not fit the adapter
    /// and the algorithm; `NonFinite` or `InvalidArgument` for values that no run leaves: NaN, infinity, a number of
    /// steps that is negative or not whole, negative means of squares.
    pub fn load_state_dict(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        self.with_adapter(|this, attachment| {
            let names = variable_names(attachment, &this.adapter)?;
            this.state.load(&attachment.adapter(&this.adapter)?.flat, &names, state)
        })
    }

    /// Takes the gradients that user code has put into the variables, if the optimiser has none.
    fn collect(&mut self, attachment: &mut Attachment) -> Result<()> {
        let flat = &attachment.adapter(&self.adapter)?.flat;
        if self.gradients.is_empty() {
            let variables = attachment.trained(&self.adapter)?;
            self.gradients.add(flat, variables.map(|v| v.tensor.grad()).collect(), 1.)?;
        }
        self.gradients.follow(flat)
    }

    fn with_gradients<T>(&mut self, f: impl FnOnce(&mut Gradients) -> Result<T>) -> Result<T> {
        self.with_adapter(|this, attachment| {
            this.collect(attachment)?;
            f(&mut this.gradients)
        })
    }

    /// Runs `f` without recording a graph, after following changes by user code.
    fn with_adapter<T>(
        &mut self,
        f: impl FnOnce(&mut Self, &mut Attachment) -> Result<T>,
    ) -> Result<T> {
        let shared = self.attachment.clone();
        let mut attachment = lock(&shared);
        no_grad(|| attachment.sync())?;
        if attachment.adapter(&self.adapter)?.id != self.adapter_id {
            refuse!(
                InvalidState,
                "adapter '{}' was deleted and created again: create a new optimizer for it",
                self.adapter
            );
        }
        no_grad(|| f(self, &mut attachment))
    }
}

/// The leaves that an adapter trains, in the order of its slots.
fn inputs(attachment: &Attachment, adapter: &str) -> Result<Vec<Tensor>> {
    Ok(attachment.trained(adapter)?.map(|variable| variable.tensor.shallow_clone()).collect())
}

fn variable_names(attachment: &Attachment, adapter: &str) -> Result<Vec<String>> {
    Ok(attachment.trained(adapter)?.map(|variable| variable.name.clone()).collect())
}

fn check_loss(loss: &Tensor) -> Result<()> {
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

fn check_max(max: f64) -> Result<()> {
    check_range("the clipping bound", max, f64::MIN_POSITIVE..f64::INFINITY, "finite and above 0")
}
