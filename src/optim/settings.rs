//! The settings of an optimiser that may change while it runs; some may differ between parameter groups.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use super::group::{check_lr, Group};
use super::loss_scale::{check_scale, DynamicLossScale, LossScale, Scaler};
use super::optimizer::Optimizer;
use crate::adapter::flat::copy_of;
use crate::adapter::NormPlace;
use crate::error::{refuse, Result};

impl Optimizer {
    /// Accumulates `steps` backward passes for one update: each of the `backward_step…` methods then adds the gradient
    /// of `loss / steps` and updates the weights at every `steps`-th call. The default is 1. An update that has begun
    /// keeps its number.
    ///
    /// # Errors
    /// `InvalidArgument` for 0.
    #[doc(alias = "gradient_accumulation_steps")]
    pub fn set_accumulation(&mut self, steps: usize) -> Result<()> {
        if steps == 0 {
            refuse!(InvalidArgument, "accumulation over 0 steps, expected at least 1");
        }
        self.accumulation = steps as i64;
        Ok(())
    }

    /// Multiplies losses by `scale` before their backward pass, and divides the gradients by it in f32. Otherwise the
    /// gradients of a mean over thousands of tokens underflow in f16. bf16 does not need it. The default is 1; for a
    /// model in f16 use 1024, or [`set_dynamic_loss_scale`](Self::set_dynamic_loss_scale), which this ends.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not a number above 0 that f32 holds.
    pub fn set_loss_scale(&mut self, scale: f64) -> Result<()> {
        check_scale("the loss scale", scale)?;
        self.state.stop_skipping()?;
        self.loss_scale = LossScale::Fixed(scale);
        Ok(())
    }

    /// Finds the loss scale while training. A step whose gradients are not all finite then changes neither weights nor
    /// moments, and is no error. The device decides that, so that nothing waits for it:
    /// [`skipped_steps`](Self::skipped_steps) tells. [`state_dict`](Self::state_dict) holds the scale as well.
    ///
    /// # Errors
    /// `InvalidArgument` for a setting out of range.
    #[doc(alias = "GradScaler")]
    pub fn set_dynamic_loss_scale(&mut self, settings: DynamicLossScale) -> Result<()> {
        let device = self.device()?;
        let scaler = Scaler::new(settings, device)?;
        self.state.start_skipping(device)?;
        self.loss_scale = LossScale::Dynamic(scaler);
        Ok(())
    }

    /// The factor of losses in the backward pass. A dynamic one is on the device, which this waits for.
    ///
    /// # Errors
    /// If libtorch cannot read it.
    pub fn loss_scale(&self) -> Result<f64> {
        match &self.loss_scale {
            LossScale::Fixed(scale) => Ok(*scale),
            LossScale::Dynamic(scaler) => Ok(scaler.scale().f_double_value(&[])?),
        }
    }

    /// The number of steps that dynamic loss scaling has skipped, as a scalar on the model's device, so that nothing
    /// waits for the device until its value is read.
    ///
    /// # Errors
    /// If libtorch has no memory for it.
    pub fn skipped_steps(&self) -> Result<Tensor> {
        match &self.loss_scale {
            LossScale::Fixed(_) => Ok(Tensor::f_zeros([], (Kind::Int64, Device::Cpu))?),
            LossScale::Dynamic(scaler) => copy_of(scaler.skipped()),
        }
    }

    /// The present learning rate; with several groups, that of the lowest.
    pub fn lr(&self) -> f64 {
        self.groups.values().next().map_or(0., |group| group.lr)
    }

    /// Sets the learning rate of every group.
    ///
    /// # Errors
    /// `InvalidArgument` if it is negative or not finite.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        check_lr(lr)?;
        self.groups.values_mut().for_each(|group| group.lr = lr);
        Ok(())
    }

    /// Sets the learning rate of one parameter group (see `tch::nn::Path::set_group`), for example that of a
    /// classifier head in `modules_to_save`.
    ///
    /// # Errors
    /// `InvalidArgument` if no selected tensor is in that group, or the rate is negative or not finite.
    pub fn set_lr_group(&mut self, group: usize, lr: f64) -> Result<()> {
        check_lr(lr)?;
        self.group(group)?.for_each(|group| group.lr = lr);
        Ok(())
    }

    /// Sets the learning rate of the tuned norms at one place. [`set_lr`](Self::set_lr) sets it for all again.
    ///
    /// # Errors
    /// `InvalidArgument` if no tuned norm is at that place, or the rate is negative or not finite.
    pub fn set_lr_norms(&mut self, place: NormPlace, lr: f64) -> Result<()> {
        check_lr(lr)?;
        self.norms(place)?.for_each(|group| group.lr = lr);
        Ok(())
    }

    /// Sets the weight decay of every group.
    ///
    /// # Errors
    /// `InvalidArgument` if it is negative or not finite.
    pub fn set_weight_decay(&mut self, weight_decay: f64) -> Result<()> {
        self.groups
            .values_mut()
            .try_for_each(|group| group.algorithm.set_weight_decay(weight_decay))
    }

    /// Sets the weight decay of one parameter group.
    ///
    /// # Errors
    /// `InvalidArgument` if no selected tensor is in that group, or the value is negative or not finite.
    pub fn set_weight_decay_group(&mut self, group: usize, weight_decay: f64) -> Result<()> {
        self.group(group)?.try_for_each(|group| group.algorithm.set_weight_decay(weight_decay))
    }

    /// Sets the weight decay of the tuned norms at one place. Decay helps norms before linear layers and harms those
    /// behind (arXiv 2605.26895).
    ///
    /// # Errors
    /// `InvalidArgument` if no tuned norm is at that place, or the value is negative or not finite.
    ///
    /// ```
    /// # use tch::{nn, Device};
    /// use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, NormPlace};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # nn::layer_norm(vs.root() / "layers" / 0 / "norm", vec![4], Default::default());
    /// # nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// let mut opt = tuned.optimizer(AdamW { wd: 0., ..AdamW::default() }, 5e-3)?;
    /// opt.set_weight_decay_norms(NormPlace::Pre, 0.01)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn set_weight_decay_norms(&mut self, place: NormPlace, weight_decay: f64) -> Result<()> {
        self.norms(place)?.try_for_each(|group| group.algorithm.set_weight_decay(weight_decay))
    }

    /// Sets the momentum of every group: β₁ for AdamW.
    ///
    /// # Errors
    /// `InvalidArgument` if it is out of range, or if it turns on a momentum that [`Sgd`](tch::nn::Sgd) was built
    /// without.
    pub fn set_momentum(&mut self, momentum: f64) -> Result<()> {
        self.groups.values_mut().try_for_each(|group| group.algorithm.set_momentum(momentum))
    }

    /// Sets the momentum of one parameter group: β₁ for AdamW.
    ///
    /// # Errors
    /// As [`set_momentum`](Self::set_momentum), and `InvalidArgument` if no selected tensor is in that group.
    pub fn set_momentum_group(&mut self, group: usize, momentum: f64) -> Result<()> {
        self.group(group)?.try_for_each(|group| group.algorithm.set_momentum(momentum))
    }

    /// The places of the tuned norms.
    pub fn norm_places(&self) -> BTreeSet<NormPlace> {
        self.groups.keys().filter_map(|(_, place)| *place).collect()
    }

    fn group(&mut self, group: usize) -> Result<impl Iterator<Item = &mut Group>> {
        let known: BTreeSet<usize> = self.groups.keys().map(|(group, _)| *group).collect();
        if !known.contains(&group) {
            refuse!(
                InvalidArgument,
                "no selected tensor is in parameter group {group}; groups in use: {known:?}"
            );
        }
        let own = self.groups.iter_mut().filter(move |((own, _), _)| *own == group);
        Ok(own.map(|(_, group)| group))
    }

    fn norms(&mut self, place: NormPlace) -> Result<impl Iterator<Item = &mut Group>> {
        let known = self.norm_places();
        if !known.contains(&place) {
            let known: Vec<&str> = known.into_iter().map(NormPlace::name).collect();
            refuse!(
                InvalidArgument,
                "no tuned norm is at the place '{}'; places in use: {}",
                place.name(),
                known.join(", ")
            );
        }
        let own = self.groups.iter_mut().filter(move |((_, own), _)| *own == Some(place));
        Ok(own.map(|(_, group)| group))
    }
}
