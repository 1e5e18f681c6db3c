//! The fields of a `config.json`: read by name and type, with errors that say which.

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

pub(super) fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

pub(super) fn integer(config: &Value, key: &str) -> Result<i64> {
    match config.get(key).and_then(Value::as_i64) {
        Some(value) => Ok(value),
        None => invalid(format!("'{key}' is missing, or not an integer")),
    }
}

pub(super) fn integer_or(config: &Value, key: &str, default: i64) -> Result<i64> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(_) => integer(config, key),
    }
}

pub(super) fn number(config: &Value, key: &str, default: f64) -> Result<f64> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(number),
            None => invalid(format!("'{key}' is {value}, expected a number")),
        },
    }
}

pub(super) fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => invalid(format!("'{key}' is {other}, expected true or false")),
    }
}

/// The labels' names in the order of the logits: of `id2label`, else as many as `num_labels`, else two.
pub(super) fn labels(config: &Value) -> Result<Vec<String>> {
    let names = match config.get("id2label") {
        None | Some(Value::Null) => {
            let count = integer_or(config, "num_labels", 2)?;
            return Ok((0..count).map(|id| format!("LABEL_{id}")).collect());
        }
        Some(names) => names,
    };
    let fits = || -> Option<Vec<String>> {
        let names = names.as_object()?;
        let name = |id: usize| Some(names.get(&id.to_string())?.as_str()?.to_owned());
        (0..names.len()).map(name).collect()
    };
    match fits() {
        Some(labels) => Ok(labels),
        None => invalid(format!("'id2label' is {names}, expected names for 0, 1, 2 …")),
    }
}

/// Names for classes of the user's.
pub(super) fn checked_labels<L: Into<String>>(
    labels: impl IntoIterator<Item = L>,
) -> Result<Vec<String>> {
    let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
    let twice = |(place, label): (usize, &String)| labels[..place].contains(label);
    if labels.is_empty() || labels.iter().enumerate().any(twice) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the labels are {labels:?}, expected one or more, each once"),
        ));
    }
    Ok(labels)
}
