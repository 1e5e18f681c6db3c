//! Errors of results beside those of PEFT, both against what is exact.

use anyhow::{ensure, Result};
use serde::Serialize;
use tch::{Kind, Tensor};

/// A result may err this many times as much as PEFT's worst of its group: the same arithmetic in another order errs
/// as much, and not in the same places.
const FACTOR: f64 = 2.;

/// Relative errors of a result: the root mean square of what is off, over that of what is exact.
#[derive(Debug, Clone, Serialize)]
pub struct Errors {
    pub name: String,
    pub error: f64,
    pub peft_error: f64,
    /// The largest error that counts as right.
    pub allowed: f64,
    pub ok: bool,
}

impl Errors {
    /// `exact` and `theirs` are PEFT's, in f64 and in the model's kind.
    pub fn of(name: &str, ours: &Tensor, theirs: &Tensor, exact: &Tensor) -> Result<Self> {
        for tensor in [theirs, exact] {
            ensure!(
                tensor.size() == ours.size(),
                "'{name}' has shape {:?} here, and {:?} in the reference",
                ours.size(),
                tensor.size()
            );
        }
        let wide = |tensor: &Tensor| tensor.f_to_device(exact.device())?.f_to_kind(Kind::Double);
        let exact = wide(exact)?;
        let size = exact.f_norm()?.f_double_value(&[])?.max(f64::MIN_POSITIVE);
        let error = |tensor: &Tensor| -> Result<f64> {
            Ok(wide(tensor)?.f_sub(&exact)?.f_norm()?.f_double_value(&[])? / size)
        };
        let (error, peft_error) = (error(ours)?, error(theirs)?);
        Ok(Errors { name: name.to_owned(), error, peft_error, allowed: 0., ok: false })
    }

    /// Such as `gradients`.
    fn group(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// Says which of the errors are too large for a model in this kind.
pub fn judge(all: &mut [Errors], kind: Kind) {
    let rounding = match kind {
        Kind::Half => 2_f64.powi(-11),
        Kind::BFloat16 => 2_f64.powi(-8),
        // Sums of some terms.
        _ => 2e-6,
    };
    let theirs: Vec<(String, f64)> =
        all.iter().map(|errors| (errors.group().to_owned(), errors.peft_error)).collect();
    for errors in all {
        let of_group = theirs.iter().filter(|(group, _)| group == errors.group());
        let worst = of_group.fold(0., |worst: f64, (_, theirs)| {
            // AdamW of PyTorch divides by 0 in f16: what is no number errs more than any.
            if theirs.is_finite() {
                worst.max(*theirs)
            } else {
                f64::MAX
            }
        });
        errors.allowed = (FACTOR * worst + rounding).min(f64::MAX);
        errors.ok = errors.error <= errors.allowed;
    }
}

/// The lines of a table: the worst of each group.
pub fn table(all: &[Errors]) -> Vec<String> {
    let mut groups: Vec<&str> = all.iter().map(Errors::group).collect();
    groups.dedup();
    let mut lines = vec![format!("{:<18} {:>9} {:>9}", "relative error", "here", "PEFT")];
    for name in groups {
        let group: Vec<&Errors> = all.iter().filter(|errors| errors.group() == name).collect();
        let excess = |errors: &Errors| errors.error / errors.allowed;
        let Some(worst) = group.iter().max_by(|a, b| excess(a).total_cmp(&excess(b))) else {
            continue;
        };
        let mut line = format!("{name:<18} {:>9.2e} {:>9.2e}", worst.error, worst.peft_error);
        if group.len() > 1 {
            line += &format!("  the worst of {}: {}", group.len(), &worst.name[name.len() + 1..]);
        }
        lines.push(line + if worst.ok { "" } else { ", too much" });
    }
    lines
}
