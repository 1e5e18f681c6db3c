//! How the learning rate goes over a run: the schedules of transformers.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape of a learning-rate schedule after its warm-up. In settings: `constant`, `linear` or `cosine`.
#[doc(alias = "SchedulerType")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Decay {
    /// It stays (`get_constant_schedule_with_warmup`).
    Constant,
    /// Down to 0 in a straight line (`get_linear_schedule_with_warmup`).
    #[default]
    Linear,
    /// Down to 0 along half a cosine wave (`get_cosine_schedule_with_warmup`).
    Cosine,
}

/// A factor for the learning rate at every step, as transformers computes it: up from 0 in a straight line, then a decay.
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
    /// A schedule for `total` steps, the first `warmup` of which go up.
    pub fn new(decay: Decay, warmup: u64, total: u64) -> Self {
        Schedule { decay, warmup, total }
    }

    /// What the learning rate is multiplied by at `step`, counted from 0; between 0 and 1.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup.max(1) as f64;
        }
        let whole = self.total.saturating_sub(self.warmup).max(1) as f64;
        let (gone, left) = (step - self.warmup, self.total.saturating_sub(step));
        match self.decay {
            Decay::Constant => 1.,
            Decay::Linear => left as f64 / whole,
            // transformers goes up again behind the end.
            Decay::Cosine => 0.5 * (1. + (PI * (gone as f64 / whole).min(1.)).cos()),
        }
    }
}
