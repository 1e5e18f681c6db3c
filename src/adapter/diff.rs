//! The differences of an adapter's weights from another's, or from the base's.

use std::collections::HashMap;
use std::fmt;

use tch::{Kind, Tensor};

use crate::adapter::attachment::Attachment;
use crate::adapter::model::LnTuningModel;
use crate::adapter::weights::{Adapter, Entry};
use crate::error::Result;
use crate::names::natural::natural_cmp;

/// The differences of two sets of weights, per tensor; [`Display`](fmt::Display) prints a table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterDiff {
    /// The first adapter.
    pub adapter: String,
    /// The adapter that it is compared with, or `None` for the base.
    pub against: Option<String>,
    /// Every floating-point tensor that either of them tunes, in natural order of the modules.
    pub tensors: Vec<TensorDiff>,
}

/// The difference of one tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorDiff {
    /// The path of the module.
    pub module: String,
    /// The name of the tensor in the module: `weight` (γ), `bias` (β).
    pub tensor: String,
    /// The number of elements.
    pub numel: usize,
    /// The Euclidean norm of the difference, √Σ(a−b)².
    pub norm: f64,
    /// `norm` divided by the norm of the tensor that it is compared with; `None` if that is 0, as for new biases.
    pub relative_norm: Option<f64>,
    /// The largest difference of an element, as an absolute value.
    pub max_abs: f64,
    /// The index of that element, in row-major order.
    pub max_index: usize,
}

impl TensorDiff {
    /// The root mean square of the difference, which is comparable between tensors of different sizes.
    pub fn rms(&self) -> f64 {
        self.norm / (self.numel.max(1) as f64).sqrt()
    }
}

impl LnTuningModel {
    /// The difference of `adapter` from the adapter `against`, or from the base for `None`. For a module that an
    /// adapter does not tune, the base is used.
    ///
    /// # Errors
    /// `UnknownAdapter`.
    ///
    /// ```
    /// # use tch::{nn, Device};
    /// # use ln_tuning::{LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "poetry")?;
    /// tuned.add_adapter("prose", LnTuningConfig::default())?;
    /// println!("{}", tuned.diff("poetry", None)?); // against the base
    /// let moved = tuned.diff("poetry", "prose")?.tensors.iter().any(|tensor| tensor.max_abs > 0.);
    /// assert!(!moved, "neither has been trained");
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn diff<'a>(
        &self,
        adapter: &str,
        against: impl Into<Option<&'a str>>,
    ) -> Result<AdapterDiff> {
        let against = against.into();
        self.with_attachment(|attachment| {
            let sides = [Some(adapter), against];
            let mut names: Vec<(String, String)> = Vec::new();
            for side in sides.into_iter().flatten() {
                for entry in &attachment.current(side)?.entries {
                    names.push((entry.tensor.module.clone(), entry.tensor.name.clone()));
                }
            }
            names.sort_by(|a, b| natural_cmp(&a.0, &b.0).then_with(|| b.1.cmp(&a.1)));
            names.dedup();
            let own = Some(Side::of(attachment.adapter(adapter)?));
            let other = against.map(|name| attachment.adapter(name).map(Side::of)).transpose()?;
            let mut tensors = Vec::new();
            for (module, tensor) in names {
                let name = format!("{module}.{tensor}");
                let a = weights(attachment, own.as_ref(), &name)?;
                let b = weights(attachment, other.as_ref(), &name)?;
                if let (Some(a), Some(b)) = (a, b) {
                    tensors.push(compare(module, tensor, &a, &b)?);
                }
            }
            let (adapter, against) = (adapter.to_owned(), against.map(str::to_owned));
            Ok(AdapterDiff { adapter, against, tensors })
        })
    }
}

/// One adapter of a comparison.
struct Side<'a> {
    adapter: &'a Adapter,
    entries: HashMap<String, &'a Entry>,
}

impl<'a> Side<'a> {
    fn of(adapter: &'a Adapter) -> Self {
        Side { adapter, entries: adapter.by_name() }
    }
}

/// The weights of one side, by default the base, in f64; `None` for integers.
fn weights(attachment: &Attachment, side: Option<&Side>, name: &str) -> Result<Option<Tensor>> {
    let value = match side.and_then(|side| Some((side.adapter, side.entries.get(name)?))) {
        Some((adapter, entry)) => adapter.value(entry)?,
        None => match attachment.variables.position(name) {
            Some(variable) => attachment.base_data(attachment.variables.get(variable).tied_to)?,
            None => return Ok(None),
        },
    };
    value.is_floating_point().then(|| Ok(value.f_to_kind(Kind::Double)?)).transpose()
}

fn compare(module: String, tensor: String, a: &Tensor, b: &Tensor) -> Result<TensorDiff> {
    let difference = a.f_sub(b)?.f_abs()?.f_reshape([-1])?;
    let length = |x: &Tensor| -> Result<f64> {
        Ok(x.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?.sqrt())
    };
    let (norm, scale) = (length(&difference)?, length(b)?);
    let max_index = difference.f_argmax(None, false)?.f_int64_value(&[])?;
    Ok(TensorDiff {
        module,
        tensor,
        numel: difference.numel(),
        norm,
        relative_norm: (scale > 0.).then_some(norm / scale),
        max_abs: difference.f_double_value(&[max_index])?,
        max_index: max_index as usize,
    })
}

impl fmt::Display for AdapterDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.tensors.iter().map(|row| row.module.len() + row.tensor.len() + 1);
        let width = widths.max().unwrap_or(0).max(6);
        let against = self.against.as_deref().unwrap_or("the base");
        writeln!(f, "'{}' against {against}", self.adapter)?;
        writeln!(f, "{:<width$} {:>10} {:>10} {:>10}", "tensor", "rms", "relative", "largest")?;
        for row in &self.tensors {
            let name = format!("{}.{}", row.module, row.tensor);
            let relative = row.relative_norm.map_or("–".into(), |r| format!("{:.3} %", 100. * r));
            writeln!(f, "{name:<width$} {:>10.6} {relative:>10} {:>10.6}", row.rms(), row.max_abs)?;
        }
        Ok(())
    }
}
