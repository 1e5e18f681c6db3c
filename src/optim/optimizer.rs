//! The optimiser: the methods of `tch::nn::Optimizer` over one flat buffer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tch::{no_grad, Device, Tensor};

use super::algorithm::Algorithm;
use super::group::{check_lr, settings, Group, Key};
use super::loss_scale::{refuse_scale, LossScale};
use super::ranks::Ranks;
use super::state::{by_key, State};
use crate::adapter::attachment::{lock, Attachment};
use crate::adapter::gradients::Gradients;
use crate::adapter::weights::Adapter;
use crate::adapter::LnTuningModel;
use crate::error::{refusal, refuse, Result};

/// Trains one adapter. Created by [`LnTuningModel::optimizer`](crate::LnTuningModel::optimizer).
///
/// It has the methods of [`tch::nn::Optimizer`], each returning a `Result`. Gradients, moments and masters are flat
/// buffers, so that a step takes about twenty kernels for a model of any depth, and never waits for the device.
///
/// The `backward…` methods compute gradients of the selected tensors only. As in PyTorch, there is one place for
/// gradients, the `.grad()` of the variables: those of `loss.backward()`, of these methods and of other optimisers add
/// up there, and whatever user code does to them counts. They are the adapter's, and are kept while another one is in
/// use. [`zero_grad`](Self::zero_grad) and the `backward_step…` methods leave zeros there, or nothing.
///
/// An error leaves gradients and weights as they were, and the next call goes on from there.
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
    pub(super) adapter: String,
    pub(super) adapter_id: u64,
    /// It trains its adapter in batches whose rows name it, whichever is active.
    pub(super) by_name: bool,
    pub(super) groups: BTreeMap<Key, Group>,
    /// The group of each slot.
    pub(super) slot_groups: Vec<Key>,
    pub(super) state: State,
    pub(super) accumulation: i64,
    /// Backward passes since the last update by the `backward_step…` methods.
    pub(super) accumulated: i64,
    /// Those that the present update consists of: `accumulation`, as it was at the first.
    parts: i64,
    pub(super) loss_scale: LossScale,
    pub(super) ranks: Ranks,
}

impl LnTuningModel {
    /// An optimiser for the active adapter: [`AdamW`](tch::nn::AdamW) or [`Sgd`](tch::nn::Sgd) of tch, with their
    /// settings.
    ///
    /// Norms want higher rates than whole models: 5e-3 for language models and 1e-2 for classifiers are good starts.
    /// The defaults of [`AdamW`](tch::nn::AdamW) are those of `torch.optim.AdamW`, with a weight decay of 0.01;
    /// recipes for norms, and `ln-tuning train`, have none.
    ///
    /// # Errors
    /// `InvalidArgument` for a setting out of range; `InvalidState` if no adapter is active, or the active one was
    /// loaded for inference, merged or disabled.
    pub fn optimizer(&self, algorithm: impl Into<Algorithm>, lr: f64) -> Result<Optimizer> {
        let active = self.attachment().active.clone().ok_or_else(|| {
            refusal!(InvalidState, "no adapter is active: call `set_adapter` first")
        })?;
        Optimizer::new(self.attachment.clone(), &active, false, algorithm.into(), lr)
    }

    /// An optimiser for an adapter by its name, whichever is active, for batches whose rows name their adapters
    /// ([`Optimizer::backward_mixed`]).
    ///
    /// # Errors
    /// As [`optimizer`](Self::optimizer), but for what is active, and `UnknownAdapter`.
    pub fn optimizer_for(
        &self,
        adapter: &str,
        algorithm: impl Into<Algorithm>,
        lr: f64,
    ) -> Result<Optimizer> {
        Optimizer::new(self.attachment.clone(), adapter, true, algorithm.into(), lr)
    }
}

impl Optimizer {
    fn new(
        attachment: Arc<Mutex<Attachment>>,
        adapter: &str,
        by_name: bool,
        algorithm: Algorithm,
        lr: f64,
    ) -> Result<Self> {
        algorithm.check()?;
        check_lr(lr)?;
        let shared = attachment.clone();
        let mut guard = lock(&shared);
        no_grad(|| guard.sync())?;
        if by_name {
            guard.train_by_name(adapter)?;
        } else {
            guard.check_trainable(adapter)?;
        }
        let own = guard.adapter(adapter)?.id;
        let places = guard.adapter(adapter)?.slot_places();
        let groups = guard.trained(adapter)?.map(|variable| variable.group);
        let slot_groups: Vec<Key> = groups.zip(places).collect();
        let groups = slot_groups.iter().map(|g| (*g, Group { algorithm, lr })).collect();
        let slots = slot_groups.len();
        Ok(Optimizer {
            attachment,
            adapter: adapter.to_owned(),
            adapter_id: own,
            by_name,
            groups,
            slot_groups,
            state: State::new(algorithm, slots),
            accumulation: 1,
            accumulated: 0,
            parts: 1,
            loss_scale: LossScale::Fixed(1.),
            ranks: Ranks::default(),
        })
    }

    /// Clears all gradients, including those in the variables.
    ///
    /// # Errors
    /// If the adapter was deleted, or the variables were changed in a way that cannot be followed.
    pub fn zero_grad(&mut self) -> Result<()> {
        self.with_adapter(|this, attachment| {
            let (adapter, leaves) = attachment.graded(&this.adapter)?;
            adapter.gradients.clear(&leaves)?;
            if let LossScale::Dynamic(scaler) = &mut this.loss_scale {
                scaler.forget()?;
            }
            this.accumulated = 0;
            this.ranks.renew();
            Ok(())
        })
    }

    /// Refuses a step while the adapter does not train.
    pub(super) fn check(&self, attachment: &Attachment) -> Result<()> {
        if self.by_name {
            attachment.check_trainable_by_name(&self.adapter)
        } else {
            attachment.check_trainable(&self.adapter)
        }
    }

    /// Updates the weights from the gradients. As in PyTorch, a tensor without a gradient does not change, by weight
    /// decay neither, and the gradients stay until [`zero_grad`](Self::zero_grad).
    ///
    /// # Errors
    /// `NoGradient` if there is no gradient; `InvalidState` as for [`backward`](Self::backward).
    pub fn step(&mut self) -> Result<()> {
        self.with_adapter(|this, attachment| {
            this.check(attachment)?;
            this.followed(attachment)?;
            this.reduce(attachment, None)?;
            this.update(attachment)
        })
    }

    /// One update from the gradients in the flat buffer. The caller has checked that the adapter is trainable.
    fn update(&mut self, attachment: &mut Attachment) -> Result<()> {
        let (adapter, _) = attachment.graded(&self.adapter)?;
        adapter.flat.adopt_written()?;
        let skip = self.loss_scale.check(adapter.gradients.flat()?)?;
        let settings = settings(&self.groups, &self.slot_groups);
        self.state.update(adapter, skip.as_ref(), settings)?;
        if let LossScale::Dynamic(scaler) = &mut self.loss_scale {
            scaler.update()?;
        }
        let stepped: Vec<bool> =
            (0..self.slot_groups.len()).map(|slot| adapter.gradients.is_present(slot)).collect();
        attachment.outdate(&self.adapter, |slot| stepped[slot])?;
        self.accumulated = 0;
        self.ranks.renew();
        Ok(())
    }

    /// `zero_grad`, `backward` and `step` in one.
    ///
    /// # Errors
    /// Those of the three.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.accumulate(loss, |_, _| Ok(()))
    }

    pub(super) fn accumulate(
        &mut self,
        loss: &Tensor,
        clip: impl Fn(&mut Self, &mut Gradients) -> Result<()>,
    ) -> Result<()> {
        let update = |this: &mut Self, attachment: &mut Attachment| {
            this.reduce(attachment, None)?;
            clip(this, &mut attachment.graded(&this.adapter)?.0.gradients)?;
            this.update(attachment)
        };
        self.with_adapter(|this, attachment| {
            // One that failed before is made up for: its gradients are still there.
            if this.accumulated >= this.parts {
                attachment.check_trainable(&this.adapter)?;
                this.followed(attachment)?;
                update(this, attachment)?;
            }
            let parts = if this.accumulated == 0 { this.accumulation } else { this.parts };
            this.add_backward(attachment, loss, parts, this.accumulated == 0)?;
            this.parts = parts;
            this.accumulated += 1;
            if this.accumulated < this.parts {
                return Ok(());
            }
            // No code of the user has run since the gradients were added.
            update(this, attachment)
        })
    }

    /// Every selected variable's name and a copy of its gradient, or `None` if it has no gradient.
    ///
    /// # Errors
    /// `UnknownAdapter` if the adapter was deleted.
    pub fn gradients(&mut self) -> Result<Vec<(String, Option<Tensor>)>> {
        self.with_adapter(|this, attachment| {
            let names = variable_names(attachment, &this.adapter)?;
            this.followed(attachment)?.gradients.named(names)
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
    /// Tensors are copies, on the model's device. With dynamic loss scaling, its state as well: `loss_scale`,
    /// `loss_scale.growth_tracker` and `loss_scale.skipped`.
    ///
    /// # Errors
    /// `UnknownAdapter` if the adapter was deleted.
    pub fn state_dict(&mut self) -> Result<Vec<(String, Tensor)>> {
        self.with_adapter(|this, attachment| {
            let names = variable_names(attachment, &this.adapter)?;
            let mut state = this.state.save(&attachment.adapter(&this.adapter)?.flat, &names)?;
            if let LossScale::Dynamic(scaler) = &this.loss_scale {
                state.extend(scaler.save()?);
            }
            Ok(state)
        })
    }

    /// Loads a state from [`state_dict`](Self::state_dict). On an error, the optimiser does not change. For dynamic
    /// loss scaling, call [`set_dynamic_loss_scale`](Self::set_dynamic_loss_scale) before; a state from a run without
    /// it leaves the scale as it is.
    ///
    /// # Errors
    /// `MissingKeys`, `UnexpectedKeys`, `DuplicateKey`, `ShapeMismatch` or `KindMismatch` if it does not fit the
    /// adapter and the algorithm; `NonFinite` or `InvalidArgument` for values that no run leaves: NaN, infinity, a
    /// number of steps that is negative or not whole, negative means of squares.
    pub fn load_state_dict(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        self.with_adapter(|this, attachment| {
            let names = variable_names(attachment, &this.adapter)?;
            let mut given = by_key(state)?;
            let scaler = match &this.loss_scale {
                LossScale::Dynamic(scaler) => Some(scaler.load(&mut given)?),
                LossScale::Fixed(_) => {
                    refuse_scale(&given)?;
                    None
                }
            };
            this.state.load(&attachment.adapter(&this.adapter)?.flat, &names, given)?;
            if let Some(scaler) = scaler {
                this.loss_scale = LossScale::Dynamic(scaler);
            }
            Ok(())
        })
    }

    /// The device of the weights.
    pub(super) fn device(&self) -> Result<Device> {
        Ok(lock(&self.attachment).adapter(&self.adapter)?.flat.master().device())
    }

    /// The adapter, whose gradients are now what user code has made of them.
    pub(super) fn followed<'a>(&self, attachment: &'a mut Attachment) -> Result<&'a mut Adapter> {
        let (adapter, leaves) = attachment.graded(&self.adapter)?;
        adapter.gradients.take_in(&adapter.flat, &leaves)?;
        Ok(adapter)
    }

    /// Runs `f` without recording a graph, after following changes by user code.
    pub(super) fn with_adapter<T>(
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
pub(super) fn inputs(attachment: &Attachment, adapter: &str) -> Result<Vec<Tensor>> {
    Ok(attachment.trained(adapter)?.map(|variable| variable.tensor.shallow_clone()).collect())
}

fn variable_names(attachment: &Attachment, adapter: &str) -> Result<Vec<String>> {
    Ok(attachment.trained(adapter)?.map(|variable| variable.name.clone()).collect())
}
