//! A new adapter out of others: weighted means, along a line or an arc.

use std::collections::BTreeSet;

use tch::{no_grad, Kind, Tensor};

use crate::adapter::attachment::Attachment;
use crate::adapter::config::{LnTuningConfig, Modules};
use crate::adapter::model::LnTuningModel;
use crate::adapter::selection::{Norms, Selection};
use crate::adapter::weights::Adapter;
use crate::error::{refuse, Error, ErrorKind, Result};

/// Along which way adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Interpolation {
    /// base + Σ weightᵢ · (adapterᵢ − base): the weighted mean where the weights sum to 1.
    #[default]
    Linear,
    /// Two adapters, per tensor along the arc between what they learnt (their differences from the base), which keeps
    /// its length where a straight line would cut it short (slerp; Shoemake 1985). Parallel differences are combined
    /// linearly.
    Spherical,
}

/// How [`LnTuningModel::interpolate_with`] combines adapters.
#[derive(Debug, Clone, Default)]
pub struct InterpolateOptions {
    method: Interpolation,
    fall_back_to_base: bool,
}

impl InterpolateOptions {
    /// Along which way. Default: [`Interpolation::Linear`].
    pub fn method(mut self, method: Interpolation) -> Self {
        self.method = method;
        self
    }

    /// Lets an adapter count as the base where it has no weights, when the adapters do not tune the same modules.
    /// Default: no, that is an error.
    pub fn fall_back_to_base(mut self, fall_back: bool) -> Self {
        self.fall_back_to_base = fall_back;
        self
    }
}

impl LnTuningModel {
    /// Adds an adapter that is the weighted sum of what others learnt. With weights that sum to 1 it is their mean.
    ///
    /// Computed in f64 and rounded once. The new adapter is used once [`set_adapter`](Self::set_adapter) makes it active.
    ///
    /// # Errors
    /// `UnknownAdapter`; `DuplicateAdapter` or `InvalidAdapterName` for the new name; `SelectionsDiffer`;
    /// `InvalidArgument` for no adapters or a weight that is not finite. Nothing is changed then.
    ///
    /// ```
    /// # use tch::{nn, Device};
    /// # use ln_tuning::{LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "poetry")?;
    /// tuned.add_adapter("prose", LnTuningConfig::default())?;
    /// tuned.interpolate(&[("poetry", 0.3), ("prose", 0.7)], "both")?;
    /// tuned.set_adapter("both")?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    #[doc(alias = "add_weighted_adapter")]
    pub fn interpolate(&mut self, adapters: &[(&str, f64)], new_name: &str) -> Result<()> {
        self.interpolate_with(adapters, new_name, &InterpolateOptions::default())
    }

    /// [`interpolate`](Self::interpolate) with options.
    ///
    /// # Errors
    /// As [`interpolate`](Self::interpolate); `InvalidArgument` for a spherical combination of other than two
    /// adapters, of weights below 0 or of weights that are all 0.
    pub fn interpolate_with(
        &mut self,
        adapters: &[(&str, f64)],
        new_name: &str,
        options: &InterpolateOptions,
    ) -> Result<()> {
        check_weights(adapters, options.method)?;
        self.insert(new_name, |attachment| combine(attachment, adapters, options))
    }
}

fn check_weights(adapters: &[(&str, f64)], method: Interpolation) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
    if adapters.is_empty() {
        return refuse("no adapters were given: name at least one, with its weight".into());
    }
    if let Some((name, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        return refuse(format!(
            "the weight of adapter '{name}' is {weight}, expected a finite number"
        ));
    }
    if method == Interpolation::Spherical {
        if adapters.len() != 2 {
            return refuse(format!(
                "{} adapters were given, and an arc lies between two: combine them pair by pair",
                adapters.len()
            ));
        }
        let negative = adapters.iter().any(|(_, weight)| *weight < 0.);
        if negative || adapters.iter().map(|(_, weight)| weight).sum::<f64>() <= 0. {
            return refuse(format!(
                "the weights are {} and {}, expected none below 0 and not both 0",
                adapters[0].1, adapters[1].1
            ));
        }
    }
    Ok(())
}

fn combine(
    attachment: &Attachment,
    adapters: &[(&str, f64)],
    options: &InterpolateOptions,
) -> Result<Adapter> {
    let sources = adapters.iter().map(|(name, _)| attachment.adapter(name));
    let sources: Vec<&Adapter> = sources.collect::<Result<_>>()?;
    let weights: Vec<f64> = adapters.iter().map(|(_, weight)| *weight).collect();
    let first = sources[0];
    let modules = |adapter: &Adapter| adapter.selection.modules().to_vec();
    let different = sources.iter().position(|other| modules(other) != modules(first));
    let (config, selection) = match different {
        None => (first.config.clone(), first.selection.clone()),
        Some(_) if options.fall_back_to_base => union(attachment, &sources)?,
        Some(other) => {
            refuse!(
                SelectionsDiffer,
                "adapters '{}' and '{}' do not tune the same modules: `InterpolateOptions::fall_back_to_base` takes \
                 the base where one has no weights",
                adapters[0].0,
                adapters[other].0
            );
        }
    };
    let base = |variable: usize| attachment.base_data(variable);
    let like = first.options.clone();
    let mut made = Adapter::new(&attachment.variables, base, config, selection, like)?;
    made.config.inference_mode = false;
    for entry in made.entries.clone() {
        let name = entry.variable();
        let base = made.value(&entry)?;
        let found =
            sources.iter().map(|source| source.entry(&name).map(|e| source.value(e)).transpose());
        let found: Vec<Option<Tensor>> = found.collect::<Result<_>>()?;
        let value = if base.is_floating_point() {
            let base = base.f_to_kind(Kind::Double)?;
            let learnt = found.iter().map(|value| match value {
                Some(value) => Ok(value.f_to_kind(Kind::Double)?.f_sub(&base)?),
                None => Ok(base.f_zeros_like()?),
            });
            let learnt: Vec<Tensor> = learnt.collect::<Result<_>>()?;
            let mut sum = base;
            for (factor, learnt) in factors(&weights, &learnt, options.method)?.iter().zip(&learnt)
            {
                sum = sum.f_add(&learnt.f_mul_scalar(*factor)?)?;
            }
            Some(sum)
        } else {
            // A counter, such as BatchNorm's: there is no mean of these.
            found.into_iter().flatten().next()
        };
        if let Some(value) = value {
            made.set_value(entry.place, &value)?;
        }
    }
    Ok(made)
}

/// What each difference is multiplied with.
fn factors(weights: &[f64], learnt: &[Tensor], method: Interpolation) -> Result<Vec<f64>> {
    let ([first, second], [a, b], Interpolation::Spherical) = (weights, learnt, method) else {
        return Ok(weights.to_vec());
    };
    let t = second / (first + second);
    let line = Ok(vec![1. - t, t]);
    let product = |a: &Tensor, b: &Tensor| -> Result<f64> {
        Ok(a.f_mul(b)?.f_sum(Kind::Double)?.f_double_value(&[])?)
    };
    let lengths = (product(a, a)? * product(b, b)?).sqrt();
    if lengths == 0. {
        return line;
    }
    let angle = (product(a, b)? / lengths).clamp(-1., 1.).acos();
    // Parallel, where the arc is the line, or opposite, where no arc is the shortest.
    if angle.sin() < 1e-6 {
        return line;
    }
    Ok(vec![((1. - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()])
}

/// Every module that some adapter has weights for.
fn union(attachment: &Attachment, sources: &[&Adapter]) -> Result<(LnTuningConfig, Selection)> {
    let paths = |saved: bool| {
        let modules = sources.iter().flat_map(|source| source.selection.modules());
        let chosen = modules.filter(move |module| module.saved == saved);
        chosen.map(|module| regex::escape(&module.path)).collect::<BTreeSet<String>>()
    };
    let (tuned, saved) = (paths(false), paths(true));
    let config = LnTuningConfig {
        target_modules: Some(Modules::Pattern(Vec::from_iter(tuned).join("|"))),
        exclude_modules: None,
        modules_to_save: Some(Vec::from_iter(saved)).filter(|saved| !saved.is_empty()),
        ..sources[0].config.clone()
    };
    let infos = no_grad(|| attachment.variables.infos())?;
    let selection = Selection::new(&infos, &config, None, Norms::All)?;
    Ok((selection.export_config(&config), selection))
}
