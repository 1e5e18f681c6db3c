//! The problem that a classifier solves: to find the class of an input, or a number.

use std::collections::BTreeSet;

use anyhow::{bail, ensure, Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// The names of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemType {
    Regression,
    SingleLabelClassification,
    MultiLabelClassification,
}

/// The model's own head.
pub struct Own {
    pub names: Vec<String>,
    problem_type: Option<ProblemType>,
}

impl Own {
    /// None if the model is no classifier.
    pub fn of(config: &Value) -> Result<Option<Self>> {
        let class = config["architectures"][0].as_str().unwrap_or_default();
        if !class.ends_with("SequenceClassification") && !class.ends_with("ImageClassification") {
            return Ok(None);
        }
        let named = || -> Option<Vec<String>> {
            let map = config.get("id2label")?.as_object()?;
            (0..map.len()).map(|id| Some(map.get(&id.to_string())?.as_str()?.to_owned())).collect()
        };
        // transformers leaves out the names of two labels without names.
        let count = config["num_labels"].as_u64().unwrap_or(2);
        ensure!(
            count <= 1 << 20,
            "the model's config.json: 'num_labels' is {count}, expected 1048576 at most"
        );
        let names = named().unwrap_or_else(|| (0..count).map(|id| format!("LABEL_{id}")).collect());
        let problem_type =
            match &config["problem_type"] {
                Value::Null => None,
                given => Some(serde_json::from_value(given.clone()).with_context(|| {
                    format!("the model's config.json: 'problem_type' is {given}")
                })?),
            };
        Ok(Some(Own { names, problem_type }))
    }
}

/// As it is `given`, or as the labels and the model say.
pub fn problem_type(
    found: &BTreeSet<&str>,
    own: Option<&Own>,
    given: Option<ProblemType>,
    new_head: bool,
    images: bool,
) -> Result<ProblemType> {
    let of_model = own.and_then(|own| own.problem_type);
    if let Some(given) = given {
        return Ok(given);
    }
    ensure!(
        of_model != Some(ProblemType::MultiLabelClassification) || new_head,
        "the model gives several labels to one input ('problem_type' is multi_label_classification), which is not \
         implemented: set data.problem_type to single_label_classification to train with one label for each"
    );
    let known = |own: &Own| {
        own.names.len() > 1 && found.iter().all(|l| own.names.iter().any(|name| name == l))
    };
    if own.is_some_and(known) {
        return Ok(ProblemType::SingleLabelClassification);
    }
    let is_fraction = |label: &&&str| number(label).is_some_and(|number| number.fract() != 0.);
    let fraction = found.iter().find(is_fraction);
    // The names of folders are words, whatever they look like.
    if images || !found.iter().all(|label| number(label).is_some()) {
        if let (Some(fraction), false) = (fraction, images) {
            let word = found.iter().find(|label| number(label).is_none());
            bail!(
                "labels are numbers and words at once, such as {fraction} and '{}': mend them, or set data.problem_type \
                 to single_label_classification if each is a class",
                word.unwrap_or(&"")
            );
        }
        return Ok(ProblemType::SingleLabelClassification);
    }
    let regresses =
        of_model == Some(ProblemType::Regression) || own.is_some_and(|own| own.names.len() == 1);
    if fraction.is_some() || regresses && !new_head {
        return Ok(ProblemType::Regression);
    }
    if let Some(other) = found.iter().find(|label| label.trim().parse::<i64>().is_err()) {
        bail!(
            "the labels are whole numbers in the form of fractions, such as {other}: set data.problem_type to regression, \
             or to single_label_classification if each is a class"
        );
    }
    Ok(ProblemType::SingleLabelClassification)
}

/// A finite number.
pub fn number(label: &str) -> Option<f64> {
    let number: f64 = label.trim().parse().ok()?;
    Some(number).filter(|number| number.is_finite())
}
