//! Learning-rate schedules, as in transformers.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape of a learning-rate schedule after its warm-up. In settings: `constant`, `linear` or `cosine`.
#[doc(alias = "SchedulerType")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Decay {
    /// Constant (`get_constant_schedule_with_warmup`).
    Constant,
    /// Linear to 0 (`get_linear_schedule_with_warmup`).
    #[default]
    Linear,
    /// Half a cosine wave to 0 (`get_cosine_schedule_with_warmup`).
    Cosine,
}

/// The factor of the learning rate at each step, as in transformers: a linear warm-up from 0, then a decay.
///
/// ```
/// use ln_tuning::{Decay, Schedule};
/// let schedule = Schedule::new(Decay::Linear, 2, 6);
/// let factors: Vec<f64> = (0..6).map(|step| schedule.factor(step)).collect();
/// assert_eq!(factors, [0., 0.5, 1., 0.75, 0.5, 0.25]);
/// // opt.set_lr(lr * schedule.factor(step))?;
/// ```
#[doc(alias = "get_scheduler")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    decay: Decay,
    warmup: u64,
    total: u64,
}

impl Schedule {
    /// A schedule for `total` steps, the first `warmup` of which are the warm-up.
    pub fn new(decay: Decay, warmup: u64, total: u64) -> Self {
        Schedule { decay, warmup, total }
    }

    /// The factor of the learning rate at `step`, counted from 0; between 0 and 1.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup.max(1) as f64;
        }
        let whole = self.total.saturating_sub(self.warmup).max(1) as f64;
        let (gone, left) = (step - self.warmup, self.total.saturating_sub(step));
        match self.decay {
            Decay::Constant => 1.,
            Decay::Linear => left as f64 / whole,
            // transformers increases the rate again after the last step.
            Decay::Cosine => 0.5 * (1. + (PI * (gone as f64 / whole).min(1.)).cos()),
        }
    }
}
