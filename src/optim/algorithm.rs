//! The update rules, on flat buffers.

use tch::{nn, Kind, Tensor};

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
        lr: f64,
    ) -> Result<()> {
        match self {
            Algorithm::AdamW(settings) => adamw(settings, params, grad, buffers, count, lr),
            Algorithm::Sgd(settings) => sgd(settings, params, grad, buffers, count, lr),
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
    lr: f64,
) -> Result<()> {
    let (beta1, beta2) = (settings.beta1, settings.beta2);
    // Memory is taken first: an error changes nothing.
    let mut work = grad.f_square()?;
    if settings.wd != 0. {
        let _ = params.f_mul_scalar_(1. - lr * settings.wd)?;
    }
    let _ = buffers[0].f_lerp_(grad, 1. - beta1)?;
    let _ = buffers[1].f_lerp_(&work, 1. - beta2)?;
    let variance = match buffers.len() {
        3 => buffers[2].f_maximum_out(&buffers[2], &buffers[1])?,
        _ => buffers[1].shallow_clone(),
    };
    let _ = variance.f_sqrt_out(&work)?;
    match count {
        Count::Known(step) => {
            let step = (*step).min(i64::from(i32::MAX)) as i32;
            let (one, two) = (1. - beta1.powi(step), (1. - beta2.powi(step)).sqrt());
            let _ = work.f_add_scalar_(settings.eps * two)?;
            let _ = work.f_mul_scalar_(-one / (lr * two))?;
        }
        Count::OnDevice(step) => {
            let correction = |beta: f64| number::pow(beta, step)?.f_neg()?.f_add_number(1.);
            let (one, two) = (correction(beta1)?, correction(beta2)?.f_sqrt()?);
            let _ = work.f_add_(&two.f_mul_number(settings.eps)?)?;
            let _ = work.f_mul_(&one.f_div(&two)?.f_mul_number(-1. / lr)?)?;
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
    lr: f64,
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
            direction.f_add(&next.f_mul_number(settings.momentum)?)?.f_mul_scalar_(lr)?
        } else {
            next.f_mul_number(lr)?
        };
        momentum.f_copy_(&next)?;
    } else {
        let _ = direction.f_mul_scalar_(lr)?;
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
