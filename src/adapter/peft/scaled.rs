//! A saved adapter with its learned shift scaled, without model code.

use std::collections::HashMap;

use serde_json::Value;
use tch::{no_grad, Kind, Tensor};

use super::base::Base;
use super::directory::SavedAdapter;
use super::keys::variable_of;
use crate::adapter::scaling::{check_scale, scaled};
use crate::error::{refuse, Result};
use crate::pretrained::files::ModelFiles;
use crate::storage::finite::check_finite;

impl SavedAdapter {
    /// The adapter with the tensors base + `factor` · (tuned − base), computed in f64 and rounded once to the wider
    /// kind of the two: for 0 the base's values and for 1 those of the adapter, bit for bit (arXiv 2508.07577). Also
    /// the keys of those that stay whole, since the base has no tensor that they started from: a new head, also one
    /// that has the shape of the base's and, by the `config.json` beside the adapter, other labels.
    ///
    /// In memory, [`LnTuningModel::interpolate`](crate::LnTuningModel::interpolate) with one adapter does the same.
    ///
    /// # Errors
    /// `InvalidArgument` if the factor is not finite; `ShapeMismatch` if a tensor does not fit the base; `NonFinite` if
    /// a result is not finite; those of [`var_store`](Self::var_store).
    pub fn scaled(&self, files: ModelFiles, factor: f64) -> Result<(Self, Vec<String>)> {
        check_scale(factor)?;
        let adapter = self.in_names_of(&files)?;
        let base = Base::of(files, &adapter.facts())?;
        let originals: HashMap<String, String> = base.files.copies().into_iter().collect();
        // A head for other labels did not start from that of the base, whatever its shape.
        let labels = |config: &Value| config.get("id2label").cloned();
        let own = adapter.model_config.as_ref().and_then(labels);
        let is_other_head = own.is_some() && own != labels(base.files.config());
        let layout = base.files.layout();
        let is_new = |name: &str| base.is_new(name) || is_other_head && layout.is_of_a_head(name);
        let start = |key: &str| {
            let name = variable_of(key).filter(|name| !is_new(name))?;
            Some(originals.get(&name).cloned().unwrap_or(name))
        };
        let (mut tensors, mut whole) = (Vec::with_capacity(adapter.tensors.len()), Vec::new());
        for (key, tuned) in &adapter.tensors {
            let start = start(key).filter(|name| base.files.find(name).is_some());
            let start = start.map(|name| base.files.tensor(&name)).transpose()?;
            let value = match start {
                None => {
                    whole.push(key.clone());
                    tuned.shallow_clone()
                }
                Some(start) if start.size() != tuned.size() => refuse!(
                    ShapeMismatch,
                    "'{key}' has shape {:?}, the model's is {:?}: was the adapter made for another size?",
                    tuned.size(),
                    start.size()
                ),
                Some(start) => no_grad(|| -> Result<Tensor> {
                    let kind = wider(start.f_kind()?, tuned.f_kind()?);
                    let value = scaled(&start, tuned, factor)?;
                    check_finite(&[(key, &value, kind)])?;
                    Ok(if value.f_kind()? == Kind::Double { value.f_to_kind(kind)? } else { value })
                })?,
            };
            tensors.push((key.clone(), value));
        }
        Ok((SavedAdapter { tensors, ..adapter }, whole))
    }
}

/// The kind that holds the values of both.
fn wider(a: Kind, b: Kind) -> Kind {
    if a == b {
        a
    } else if a == Kind::Double || b == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    }
}
