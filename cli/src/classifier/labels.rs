//! The classes: their names and numbers.

use std::collections::BTreeSet;

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::natural_cmp;
use ln_tuning::pretrained::ModelFiles;
use serde_json::Value;

use super::rows::Rows;

#[derive(Debug, Clone)]
pub struct Labels {
    pub names: Vec<String>,
    /// The model has a head for just these.
    pub of_model: bool,
}

impl Labels {
    /// Those of the training data: in the model's order if it knows them, else in natural order.
    pub fn of(train: &Rows, eval: Option<&Rows>, files: &ModelFiles) -> Result<Self> {
        let found: BTreeSet<&str> = train.rows.iter().map(|row| row.label.as_str()).collect();
        ensure!(
            found.len() > 1,
            "all rows have the label {found:?}, expected two labels or more to tell apart"
        );
        for (place, row) in eval.iter().flat_map(|eval| eval.rows.iter().enumerate()) {
            if !found.contains(row.label.as_str()) {
                let place = eval.map(|eval| eval.place(place)).unwrap_or_default();
                bail!("{place}: the label '{}' does not occur in the training data", row.label);
            }
        }
        let own = names(files.config()).unwrap_or_default();
        let classifies = files.config()["architectures"][0]
            .as_str()
            .is_some_and(|class| class.ends_with("Classification"));
        if classifies && own.len() == found.len() && own.iter().all(|l| found.contains(l.as_str()))
        {
            return Ok(Labels { names: own, of_model: true });
        }
        let mut names: Vec<String> = found.into_iter().map(str::to_owned).collect();
        names.sort_by(|a, b| natural_cmp(a, b));
        Ok(Labels { names, of_model: false })
    }

    pub fn number(&self, name: &str) -> Result<i64> {
        let place = self.names.iter().position(|label| label == name);
        place.map(|place| place as i64).with_context(|| format!("the label '{name}' is not known"))
    }
}

/// `id2label`, by the numbers.
fn names(config: &Value) -> Option<Vec<String>> {
    let map = config.get("id2label")?.as_object()?;
    (0..map.len()).map(|id| Some(map.get(&id.to_string())?.as_str()?.to_owned())).collect()
}
