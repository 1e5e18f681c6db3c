//! The settings of an optimiser that may differ between parameter groups, and change while it runs.

use super::algorithm::{check_range, Algorithm};
use super::Optimizer;
use crate::error::{Error, ErrorKind, Result};

/// The settings of one parameter group (`Path::set_group` of tch).
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) algorithm: Algorithm,
    pub(super) lr: f64,
}

impl Optimizer {
    /// The present learning rate; that of the lowest group where there are several.
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
        self.group(group)?.lr = lr;
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
        self.group(group)?.algorithm.set_weight_decay(weight_decay)
    }

    /// Sets the momentum of every group: β₁ for AdamW.
    ///
    /// # Errors
    /// `InvalidArgument` if it is out of range, or if it turns on a momentum that [`Sgd`](tch::nn::Sgd) was built without.
    pub fn set_momentum(&mut self, momentum: f64) -> Result<()> {
        self.groups.values_mut().try_for_each(|group| group.algorithm.set_momentum(momentum))
    }

    /// Sets the momentum of one parameter group: β₁ for AdamW.
    ///
    /// # Errors
    /// As [`set_momentum`](Self::set_momentum), and `InvalidArgument` if no selected tensor is in that group.
    pub fn set_momentum_group(&mut self, group: usize, momentum: f64) -> Result<()> {
        self.group(group)?.algorithm.set_momentum(momentum)
    }

    fn group(&mut self, group: usize) -> Result<&mut Group> {
        let known: Vec<usize> = self.groups.keys().copied().collect();
        self.groups.get_mut(&group).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "no selected tensor is in parameter group {group}; groups in use: {known:?}"
                ),
            )
        })
    }
}

pub(super) fn check_lr(lr: f64) -> Result<()> {
    check_range("the learning rate", lr, 0.0..f64::INFINITY, "finite and not negative")
}
