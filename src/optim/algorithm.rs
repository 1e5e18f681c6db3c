//! The update rules, on flat buffers.

use tch::{nn, Kind, Tensor};

use super::numbers::{Numbers, COUNT};
use crate::adapter::flat::copy_of;
use crate::error::{refusal, refuse, Result};
use crate::kernels::number::{self, WithNumber};

/// An optimisation algorithm with its settings, from the builders of tch.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Algorithm {
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW` computes it.
    AdamW(nn::AdamW),
    /// Stochastic gradient descent with momentum, as `torch.optim.SGD` computes it.
    Sgd(nn::Sgd),
}

/// The number of an update, from 1.
#[derive(Debug)]
pub(super) enum Count {
    Known(i64),
    /// A scalar, where updates may have been skipped.
    OnDevice(Tensor),
}

impl From<nn::AdamW> for Algorithm {
    fn from(settings: nn::AdamW) -> Self {
        Algorithm::AdamW(settings)
    }
}

impl From<nn::Sgd> for Algorithm {
    fn from(settings: nn::Sgd) -> Self {
        Algorithm::Sgd(settings)
    }
}

impl Algorithm {
    /// The names of its buffers in the state of `torch.optim`.
    pub(super) fn buffers(&self) -> &'static [&'static str] {
        match self {
            Algorithm::AdamW(settings) if settings.amsgrad => {
                &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
            }
            Algorithm::AdamW(_) => &["exp_avg", "exp_avg_sq"],
            Algorithm::Sgd(settings) if settings.momentum != 0. => &["momentum_buffer"],
            Algorithm::Sgd(_) => &[],
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let unit = |name, value: f64| check_range(name, value, 0.0..1.0, "in [0, 1)");
        let positive = |name, value: f64| {
            check_range(name, value, 0.0..f64::INFINITY, "finite and not negative")
        };
        match self {
            Algorithm::AdamW(s) => {
                unit("beta1", s.beta1)?;
                unit("beta2", s.beta2)?;
                positive("eps", s.eps)?;
                positive("wd", s.wd)
            }
            Algorithm::Sgd(s) => {
                positive("momentum", s.momentum)?;
                positive("wd", s.wd)?;
                if s.nesterov && (s.momentum == 0. || s.dampening != 0.) {
                    refuse!(
                        InvalidArgument,
                        "Nesterov momentum needs a momentum above 0 and no dampening"
                    );
                }
                Ok(())
            }
        }
    }

    /// True if the settings that may differ between groups are equal.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Algorithm::AdamW(a), Algorithm::AdamW(b)) => (a.wd, a.beta1) == (b.wd, b.beta1),
            (Algorithm::Sgd(a), Algorithm::Sgd(b)) => (a.wd, a.momentum) == (b.wd, b.momentum),
            _ => false,
        }
    }

    /// True if all settings are equal.
    pub(super) fn is_whole_same(&self, other: &Self) -> bool {
        let rest = match (self, other) {
            (Algorithm::AdamW(a), Algorithm::AdamW(b)) => {
                (a.beta2, a.eps, a.amsgrad) == (b.beta2, b.eps, b.amsgrad)
            }
            (Algorithm::Sgd(a), Algorithm::Sgd(b)) => {
                (a.dampening, a.nesterov) == (b.dampening, b.nesterov)
            }
            _ => false,
        };
        rest && self.is_same(other)
    }

    /// The numbers of an update that change from step to step. AdamW: the factor of weight decay, and the two scalars of
    /// its divisor; where updates may be skipped, the number of the step and −1/lr instead, since the device counts. SGD:
    /// the rate.
    pub(super) fn numbers(&self, step: i64, lr: f64, skips: bool) -> [f64; COUNT] {
        match self {
            Algorithm::AdamW(settings) if skips => [1. - lr * settings.wd, step as f64, -1. / lr],
            Algorithm::AdamW(settings) => {
                let powers = step.min(i64::from(i32::MAX)) as i32;
                let one = 1. - settings.beta1.powi(powers);
                let two = (1. - settings.beta2.powi(powers)).sqrt();
                [1. - lr * settings.wd, settings.eps * two, -one / (lr * two)]
            }
            Algorithm::Sgd(_) => [lr, step as f64, 0.],
        }
    }

    pub(super) fn set_weight_decay(&mut self, wd: f64) -> Result<()> {
        let mut changed = *self;
        match &mut changed {
            Algorithm::AdamW(settings) => settings.wd = wd,
            Algorithm::Sgd(settings) => settings.wd = wd,
        }
        changed.check()?;
        *self = changed;
        Ok(())
    }

    pub(super) fn set_momentum(&mut self, momentum: f64) -> Result<()> {
        let mut changed = *self;
        match &mut changed {
            Algorithm::AdamW(settings) => settings.beta1 = momentum,
            Algorithm::Sgd(settings) if (settings.momentum == 0.) != (momentum == 0.) => {
                refuse!(
                    InvalidArgument,
                    "cannot change the momentum from {} to {momentum}: build the optimizer with or without one",
                    settings.momentum
                );
            }
            Algorithm::Sgd(settings) => settings.momentum = momentum,
        }
        changed.check()?;
        *self = changed;
        Ok(())
    }

    /// Updates `params` in place. `buffers` are in the order of [`Algorithm::buffers`].
    pub(super) fn update(
        &self,
        params: &mut Tensor,
        grad: &Tensor,
        buffers: &mut [Tensor],
        count: &Count,
        (lr, numbers): (f64, &Numbers),
    ) -> Result<()> {
        match self {
            Algorithm::AdamW(s) => adamw(s, params, grad, buffers, count, (lr, numbers)),
            Algorithm::Sgd(settings) => sgd(settings, params, grad, buffers, count, numbers),
        }
    }
}

/// `p ← p·(1 − lr·wd) − lr/c₁ · m / (√v/√c₂ + eps)`, with c₁ = 1 − β₁ᵗ and c₂ = 1 − β₂ᵗ.
///
/// Eight kernels: the scalars are folded so that the step is `m / d` with `d = −(√v + eps·√c₂) · c₁/(lr·√c₂)`.
fn adamw(
    settings: &nn::AdamW,
    params: &mut Tensor,
    grad: &Tensor,
    buffers: &mut [Tensor],
    count: &Count,
    (lr, numbers): (f64, &Numbers),
) -> Result<()> {
    let (beta1, beta2) = (settings.beta1, settings.beta2);
    // Memory is taken first: an error changes nothing.
    let mut work = grad.f_square()?;
    if settings.wd != 0. {
        numbers.multiply(0, params)?;
    }
    let _ = buffers[0].f_lerp_(grad, 1. - beta1)?;
    let _ = buffers[1].f_lerp_(&work, 1. - beta2)?;
    let variance = match buffers.len() {
        3 => buffers[2].f_maximum_out(&buffers[2], &buffers[1])?,
        _ => buffers[1].shallow_clone(),
    };
    let _ = variance.f_sqrt_out(&work)?;
    match count {
        Count::Known(_) => {
            numbers.add(1, &mut work)?;
            numbers.multiply(2, &mut work)?;
        }
        Count::OnDevice(step) => {
            let correction = |beta: f64| number::pow(beta, step)?.f_neg()?.f_add_number(1.);
            let (one, two) = (correction(beta1)?, correction(beta2)?.f_sqrt()?);
            let _ = work.f_add_(&two.f_mul_number(settings.eps)?)?;
            let _ = work.f_mul_(&numbers.times_wide(2, &one.f_div(&two)?)?)?;
        }
    }
    // At a rate of 0 the divisor is infinite, or not a number.
    if lr != 0. {
        let _ = params.f_addcdiv_(&buffers[0], &work)?;
    }
    Ok(())
}

fn sgd(
    settings: &nn::Sgd,
    params: &mut Tensor,
    grad: &Tensor,
    buffers: &mut [Tensor],
    count: &Count,
    numbers: &Numbers,
) -> Result<()> {
    let mut direction = match settings.wd {
        0. => copy_of(grad)?,
        wd => grad.f_add(&params.f_mul_number(wd)?)?,
    };
    if let Some(momentum) = buffers.first_mut() {
        // The first gradient is taken whole.
        let dampened = 1. - settings.dampening;
        let new = match count {
            Count::Known(1) => copy_of(&direction)?,
            Count::Known(_) => direction.f_mul_number(dampened)?,
            Count::OnDevice(step) => {
                let gain = step.f_eq_number(1.)?.f_to_kind(Kind::Double)?;
                direction.f_mul(&gain.f_mul_number(settings.dampening)?.f_add_number(dampened)?)?
            }
        };
        // Memory is taken first: an error changes nothing.
        let mut next = momentum.f_mul_number(settings.momentum)?;
        let _ = next.f_add_(&new)?;
        direction = if settings.nesterov {
            let mut direction = direction.f_add(&next.f_mul_number(settings.momentum)?)?;
            numbers.multiply(0, &mut direction)?;
            direction
        } else {
            numbers.times(0, &next)?
        };
        momentum.f_copy_(&next)?;
    } else {
        numbers.multiply(0, &mut direction)?;
    }
    let _ = params.f_sub_(&direction)?;
    Ok(())
}

pub(super) fn check_range(
    name: &str,
    value: f64,
    range: std::ops::Range<f64>,
    expected: &str,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(refusal!(InvalidArgument, "{name} is {value}, expected {expected}"))
}
