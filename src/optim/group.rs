//! A parameter group: tensors that share settings.

use super::algorithm::{check_range, Algorithm};
use crate::error::Result;

/// The settings of one parameter group (`Path::set_group` of tch).
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) algorithm: Algorithm,
    pub(super) lr: f64,
}

pub(super) fn check_lr(lr: f64) -> Result<()> {
    check_range("the learning rate", lr, 0.0..f64::INFINITY, "finite and not negative")
}
