//! The factor of losses in the backward pass, fixed or found while training.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::algorithm::check_range;
use crate::adapter::flat::copy_of;
use crate::error::{refusal, refuse, Result};
use crate::kernels::number::{self, WithNumber};

/// Dynamic loss scaling for models in f16, as torch's `GradScaler` does it, with its defaults: a step whose gradients
/// are not all finite is skipped and the scale halved; after 2000 steps without one, the scale is doubled.
///
/// ```
/// # use tch::{nn, Device, Kind, Tensor};
/// use ln_tuning::{AdamW, DynamicLossScale, LnTuningConfig, LnTuningModel};
/// # let mut vs = nn::VarStore::new(Device::Cpu);
/// # let norm = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
/// # let x = Tensor::ones([4], (Kind::Half, Device::Cpu));
/// # vs.half();
/// # let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
/// let mut opt = tuned.optimizer(AdamW::default(), 1e-3)?;
/// opt.set_dynamic_loss_scale(DynamicLossScale { init_scale: 4096., ..Default::default() })?;
/// # use tch::nn::Module;
/// opt.backward_step(&norm.forward(&x).to_kind(Kind::Float).square().mean(Kind::Float))?;
/// assert_eq!(opt.skipped_steps()?.int64_value(&[]), 0);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "GradScaler")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicLossScale {
    /// The scale of the first step. Default: 65536.
    pub init_scale: f64,
    /// The factor of the scale after `growth_interval` steps without a skipped one. Default: 2.
    pub growth_factor: f64,
    /// The factor of the scale after a skipped step. Default: 0.5.
    pub backoff_factor: f64,
    /// Default: 2000.
    pub growth_interval: i64,
}

impl Default for DynamicLossScale {
    fn default() -> Self {
        DynamicLossScale {
            init_scale: 65536.,
            growth_factor: 2.,
            backoff_factor: 0.5,
            growth_interval: 2000,
        }
    }
}

#[derive(Debug)]
pub(super) enum LossScale {
    Fixed(f64),
    Dynamic(Scaler),
}

/// The present factor.
#[derive(Debug)]
pub(super) enum Factor {
    Number(f64),
    OnDevice(Tensor),
}

/// The state of dynamic loss scaling, on the device: nothing waits for it.
#[derive(Debug)]
pub(super) struct Scaler {
    settings: DynamicLossScale,
    scale: Tensor,
    /// Steps since the scale changed.
    growth_tracker: Tensor,
    /// Above 0 if a gradient of the next step is not finite.
    found_inf: Tensor,
    skipped: Tensor,
}

impl LossScale {
    pub(super) fn factor(&self) -> Factor {
        match self {
            LossScale::Fixed(scale) => Factor::Number(*scale),
            LossScale::Dynamic(scaler) => Factor::OnDevice(scaler.scale.shallow_clone()),
        }
    }

    /// With dynamic loss scaling, a tensor: true if a gradient of the next step is not finite.
    pub(super) fn check(&mut self, gradients: &Tensor) -> Result<Option<Tensor>> {
        match self {
            LossScale::Fixed(_) => Ok(None),
            LossScale::Dynamic(scaler) => scaler.check(gradients).map(Some),
        }
    }
}

impl Factor {
    pub(super) const ONE: Factor = Factor::Number(1.);

    /// A loss multiplied by the factor and divided by `parts`, in f32 at least: f16 ends at 65504.
    pub(super) fn scaled(&self, loss: &Tensor, parts: i64) -> Result<Tensor> {
        if matches!(self, Factor::Number(scale) if *scale == 1.) && parts == 1 {
            return Ok(loss.shallow_clone());
        }
        let wide = match loss.f_kind()? {
            Kind::Half | Kind::BFloat16 => loss.f_to_kind(Kind::Float)?,
            _ => loss.shallow_clone(),
        };
        Ok(match self {
            Factor::Number(scale) => wide.f_mul_number(scale / parts as f64)?,
            Factor::OnDevice(scale) => {
                wide.f_mul(&scale.f_to_device(loss.device())?)?.f_div_number(parts)?
            }
        })
    }

    /// Divides by the factor in place.
    pub(super) fn unscale(&self, tensor: &mut Tensor) -> Result<()> {
        match self {
            Factor::Number(scale) if *scale == 1. => (),
            Factor::Number(scale) => drop(tensor.f_div_scalar_(*scale)?),
            Factor::OnDevice(scale) => {
                drop(tensor.f_div_(&scale.f_to_device(tensor.device())?)?);
            }
        }
        Ok(())
    }
}

/// Refuses a scale that is 0 or infinite in f32, in which losses are multiplied by it.
pub(super) fn check_scale(name: &str, scale: f64) -> Result<()> {
    let expected = "a number above 0 that f32 holds: 1e-37 to 3e38";
    check_range(name, scale, f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX), expected)
}

const SCALE: &str = "loss_scale";
const GROWTH: &str = "loss_scale.growth_tracker";
const SKIPPED: &str = "loss_scale.skipped";

/// Refuses a state of dynamic loss scaling where the scale is fixed.
pub(super) fn refuse_scale(given: &HashMap<&str, &Tensor>) -> Result<()> {
    if given.contains_key(SCALE) {
        refuse!(
            UnexpectedKeys,
            "the optimizer state holds '{SCALE}', but the loss scale of this optimizer is fixed: call \
             `set_dynamic_loss_scale` before loading it"
        );
    }
    Ok(())
}

impl Scaler {
    pub(super) fn new(settings: DynamicLossScale, device: Device) -> Result<Self> {
        check_scale("init_scale", settings.init_scale)?;
        let growth = 1. + f64::EPSILON..f64::INFINITY;
        check_range("growth_factor", settings.growth_factor, growth, "finite and above 1")?;
        let backoff = f64::MIN_POSITIVE..1.;
        check_range("backoff_factor", settings.backoff_factor, backoff, "between 0 and 1")?;
        let interval = settings.growth_interval;
        if !(1..=i64::from(i32::MAX)).contains(&interval) {
            refuse!(InvalidArgument, "growth_interval is {interval}, expected 1 to {}", i32::MAX);
        }
        Ok(Scaler {
            settings,
            scale: number::full(&[], settings.init_scale, (Kind::Float, device))?,
            growth_tracker: Tensor::f_zeros([], (Kind::Int, device))?,
            found_inf: Tensor::f_zeros([], (Kind::Float, device))?,
            skipped: Tensor::f_zeros([], (Kind::Int64, device))?,
        })
    }

    pub(super) fn scale(&self) -> &Tensor {
        &self.scale
    }

    pub(super) fn skipped(&self) -> &Tensor {
        &self.skipped
    }

    /// True if a gradient is not finite, now or at an earlier check since the last update.
    fn check(&mut self, gradients: &Tensor) -> Result<Tensor> {
        for tensor in
            [&mut self.scale, &mut self.growth_tracker, &mut self.found_inf, &mut self.skipped]
        {
            *tensor = tensor.f_to_device(gradients.device())?;
        }
        let one = self.scale.f_ones_like()?;
        let mut gradients = gradients.shallow_clone();
        gradients.f_internal_amp_non_finite_check_and_unscale(&mut self.found_inf, &one)?;
        Ok(self.found_inf.f_gt_number(0.)?)
    }

    /// Forgets gradients, which were cleared.
    pub(super) fn forget(&mut self) -> Result<()> {
        let _ = self.found_inf.f_zero_()?;
        Ok(())
    }

    /// Sets the scale of the next step.
    pub(super) fn update(&mut self) -> Result<()> {
        let DynamicLossScale { growth_factor, backoff_factor, growth_interval, .. } = self.settings;
        let _ = self.skipped.f_add_(&self.found_inf.f_to_kind(Kind::Int64)?)?;
        let _ = self.scale.f_internal_amp_update_scale_(
            &self.growth_tracker,
            &self.found_inf,
            growth_factor,
            backoff_factor,
            growth_interval,
        )?;
        self.forget()
    }

    pub(super) fn save(&self) -> Result<Vec<(String, Tensor)>> {
        let all = [(SCALE, &self.scale), (GROWTH, &self.growth_tracker), (SKIPPED, &self.skipped)];
        let copy = |(key, tensor): (&str, &Tensor)| {
            Ok((key.to_owned(), copy_of(&tensor.f_to_device(Device::Cpu)?)?))
        };
        all.into_iter().map(copy).collect()
    }

    /// This one with a saved state, whose keys are taken out of `given`. A state without any of them changes nothing.
    pub(super) fn load(&self, given: &mut HashMap<&str, &Tensor>) -> Result<Scaler> {
        let device = self.scale.device();
        let mut loaded = Scaler::new(self.settings, device)?;
        let mut found = Vec::new();
        for (key, whole) in [(SCALE, false), (GROWTH, true), (SKIPPED, true)] {
            let Some(tensor) = given.remove(key) else { continue };
            let single = tensor.defined()
                && tensor.size().is_empty()
                && !matches!(tensor.f_kind()?, Kind::ComplexFloat | Kind::ComplexDouble);
            let value = if single {
                tensor.f_to_kind(Kind::Double)?.f_double_value(&[])?
            } else {
                f64::NAN
            };
            let fits = if whole {
                value.fract() == 0. && (0. ..=f64::from(i32::MAX)).contains(&value)
            } else {
                value as f32 > 0. && (value as f32).is_finite()
            };
            if !fits {
                let expected = if whole { "a whole number, 0 or more" } else { "a number above 0" };
                refuse!(
                    InvalidArgument,
                    "the optimizer state '{key}' is {value}, expected {expected}"
                );
            }
            found.push(value);
        }
        match found[..] {
            [] => {
                loaded.scale.f_copy_(&self.scale)?;
                loaded.growth_tracker.f_copy_(&self.growth_tracker)?;
                loaded.skipped.f_copy_(&self.skipped)?;
            }
            [scale, growth, skipped] => {
                let _ = loaded.scale.f_fill_(scale)?;
                let _ = loaded.growth_tracker.f_fill_(growth)?;
                let _ = loaded.skipped.f_fill_(skipped)?;
            }
            _ => {
                return Err(refusal!(
                    MissingKeys,
                    "the optimizer state holds {} of '{SCALE}', '{GROWTH}' and '{SKIPPED}', expected all or none",
                    found.len()
                ))
            }
        }
        Ok(loaded)
    }
}
