//! A new adapter from others: weighted means, along a line or an arc.

use std::collections::BTreeSet;

use tch::{no_grad, Kind, Tensor};

use crate::adapter::attachment::Attachment;
use crate::adapter::config::{LnTuningConfig, Modules};
use crate::adapter::model::LnTuningModel;
use crate::adapter::scaling::scaled;
use crate::adapter::selection::{Norms, Role, Selection};
use crate::adapter::weights::Adapter;
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;
use crate::storage::finite::check_finite;

/// The path along which adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Interpolation {
    /// base + Σ weightᵢ · (adapterᵢ − base): the weighted mean if the weights sum to 1.
    #[default]
    Linear,
    /// Along the arc between two adapters' differences from the base, per tensor (slerp; Shoemake 1985). It keeps the
    /// length of the difference, which a straight line shortens. Parallel differences are combined linearly.
    Spherical,
}

/// The options of [`LnTuningModel::interpolate_with`].
#[derive(Debug, Clone, Default)]
pub struct InterpolateOptions {
    method: Interpolation,
    fall_back_to_base: bool,
}

impl InterpolateOptions {
    /// The path. Default: [`Interpolation::Linear`].
    pub fn method(mut self, method: Interpolation) -> Self {
        self.method = method;
        self
    }

    /// Uses the base for a module that an adapter does not tune. Default: false, so that adapters that tune different
    /// modules are an error.
    pub fn fall_back_to_base(mut self, fall_back: bool) -> Self {
        self.fall_back_to_base = fall_back;
        self
    }
}

impl LnTuningModel {
    /// Adds an adapter with the weighted sum of the others' differences from the base: their mean if the weights sum to
    /// 1.
    ///
    /// One adapter alone is scaled: for a weight of 0 the new one is the base and for 1 the adapter, bit for bit (arXiv
    /// 2508.07577).
    ///
    /// Computed in f64 and rounded once. Call [`set_adapter`](Self::set_adapter) to use the new adapter.
    ///
    /// # Errors
    /// `UnknownAdapter`; `DuplicateAdapter` or `InvalidAdapterName` for the new name; `SelectionsDiffer`;
    /// `InvalidArgument` for no adapters or a weight that is not finite; `NonFinite` for a sum that is not. Nothing is
    /// changed then.
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
    if adapters.is_empty() {
        refuse!(InvalidArgument, "no adapters were given: name at least one, with its weight");
    }
    if let Some((name, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        refuse!(
            InvalidArgument,
            "the weight of adapter '{name}' is {weight}, expected a finite number"
        );
    }
    if method == Interpolation::Spherical {
        let [(_, first), (_, second)] = adapters else {
            refuse!(
                InvalidArgument,
                "{} adapters were given, but an arc lies between two: combine them pair by pair",
                adapters.len()
            );
        };
        if *first < 0. || *second < 0. || first + second <= 0. {
            refuse!(
                InvalidArgument,
                "the weights are {first} and {second}, expected none below 0 and not both 0"
            );
        }
    }
    Ok(())
}

fn combine(
    attachment: &Attachment,
    adapters: &[(&str, f64)],
    options: &InterpolateOptions,
) -> Result<Adapter> {
    let sources = adapters.iter().map(|(name, _)| attachment.current(name));
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
                "adapters '{}' and '{}' do not tune the same modules: `InterpolateOptions::fall_back_to_base` uses \
                 the base for a module that one does not tune",
                adapters[0].0,
                adapters[other].0
            );
        }
    };
    let base = |variable: usize| attachment.base_data(variable);
    let like = first.options.clone();
    let config = LnTuningConfig { inference_mode: false, ..config };
    let mut made = Adapter::new(&attachment.variables, base, config, selection, like)?;
    let by_name: Vec<_> = sources.iter().map(|source| (source, source.by_name())).collect();
    for entry in made.entries.clone() {
        let name = entry.tensor.variable();
        let base = made.value(&entry)?;
        let found = by_name
            .iter()
            .map(|(source, entries)| entries.get(&name).map(|e| source.value(e)).transpose());
        let found: Vec<Option<Tensor>> = found.collect::<Result<_>>()?;
        let one = match weights.as_slice() {
            [weight] => found[0].as_ref().map(|tuned| (tuned, *weight)),
            _ => None,
        };
        let value = if let Some((tuned, weight)) = one {
            let value = scaled(&base, tuned, weight)?;
            check_finite(&[(&name, &value, made.model_kind(&entry)?)])?;
            Some(value)
        } else if base.is_floating_point() {
            let base = base.f_to_kind(Kind::Double)?;
            let learnt = found.iter().map(|value| match value {
                Some(value) => Ok(value.f_to_kind(Kind::Double)?.f_sub(&base)?),
                None => Ok(base.f_zeros_like()?),
            });
            let learnt: Vec<Tensor> = learnt.collect::<Result<_>>()?;
            let mut sum = base;
            for (factor, learnt) in factors(&weights, &learnt, options.method)?.iter().zip(&learnt)
            {
                sum = sum.f_add(&learnt.f_mul_number(*factor)?)?;
            }
            check_finite(&[(&name, &sum, made.model_kind(&entry)?)])?;
            Some(sum)
        } else {
            // A counter, such as BatchNorm's, has no mean.
            found.into_iter().flatten().next()
        };
        if let Some(value) = value {
            made.set_value(entry.place, &value)?;
        }
    }
    Ok(made)
}

/// The factor of each difference.
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
    // If parallel, the arc is the line; if opposite, there is no shortest arc.
    if angle.sin() < 1e-6 {
        return line;
    }
    Ok(vec![((1. - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()])
}

/// All modules that any of the adapters tunes.
fn union(attachment: &Attachment, sources: &[&Adapter]) -> Result<(LnTuningConfig, Selection)> {
    let paths = |role: Role| {
        let modules = sources.iter().flat_map(|source| source.selection.modules());
        let chosen = modules.filter(move |module| module.role == role);
        chosen.map(|module| module.path.clone()).collect::<BTreeSet<String>>()
    };
    let (tuned, saved) = (paths(Role::Tuned), paths(Role::Whole));
    let tuned = tuned.iter().map(|path| regex::escape(path));
    let config = LnTuningConfig {
        target_modules: Some(Modules::Pattern(Vec::from_iter(tuned).join("|"))),
        exclude_modules: None,
        recipe: None,
        modules_to_save: Some(Vec::from_iter(saved)).filter(|saved| !saved.is_empty()),
        ..sources[0].config.clone()
    };
    let infos = no_grad(|| attachment.variables.infos())?;
    let selection = Selection::new(&infos, &config, None, Norms::All)?;
    Ok((selection.export_config(&config), selection))
}
