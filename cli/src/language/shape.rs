//! The shapes that rows have: which one a row fits.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Result};
use serde_json::Value;

use super::columns::Columns;
use crate::records::keys::{is_empty, near, nearest};
use crate::records::shown;

/// The values of a row, under our names.
pub type Fields<'c> = BTreeMap<&'c str, Value>;

/// The shapes of rows, by the keys that each must have.
const SHAPES: [&[&str]; 5] = [
    &["text"],
    &["prompt", "completion"],
    &["messages"],
    &["conversations"],
    &["instruction", "output"],
];

/// The shape of a row. Names in `data.columns` say which one is meant, if there are several.
pub fn shape(
    fields: &Fields,
    columns: &Columns,
    keys: &[String],
) -> Result<&'static [&'static str]> {
    let named = |shape: &&&[&str]| shape.iter().any(|key| columns.mapped(key).is_some());
    let fits = |shape: &&&[&str]| shape.iter().all(|key| fields.contains_key(key));
    let mut fitting: Vec<_> = SHAPES.iter().filter(fits).collect();
    if fitting.len() > 1 {
        // Something empty may stand for what is absent.
        fitting.retain(|shape| shape.iter().all(|key| !is_empty(&fields[key])));
    }
    let meant: Vec<_> = fitting.iter().copied().filter(named).collect();
    let words = |shape: &[&str]| {
        shape.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(" and ")
    };
    match (&*meant, &*fitting) {
        ([shape], _) | ([], [shape]) => return Ok(shape),
        ([_, ..], _) | (_, [_, ..]) => {
            let (first, all) = (fitting[0], fitting.iter().map(|shape| words(shape)));
            bail!(
                "this row fits {}: name the one that is meant, such as data.columns.{1}={1}",
                all.collect::<Vec<_>>().join(", and "),
                first[0]
            )
        }
        ([], []) => {}
    }
    let names = keys.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    let mut wanted = SHAPES.iter().filter(named).chain(&SHAPES);
    let partly =
        |shape: &&&[&str]| named(shape) || shape.iter().any(|key| fields.contains_key(key));
    if let Some(shape) = wanted.find(partly) {
        let found: Vec<&str> =
            shape.iter().copied().filter(|key| fields.contains_key(key)).collect();
        let lacking =
            shape.iter().copied().find(|key| !fields.contains_key(key)).unwrap_or_default();
        let name = columns.name(lacking);
        let near = near(name, keys.iter().filter(|key| !found.contains(&key.as_str())));
        let near = near.map_or(String::new(), |near| format!(" Is it '{near}'?"));
        let there = match found.first() {
            Some(found) => format!("there is a '{}' and no '{name}'", columns.name(found)),
            None => format!("there is no '{name}'"),
        };
        bail!(
            "{there}.{near} The row has {names}; data.columns.{lacking} gives the name of the {lacking}"
        );
    }
    if keys.is_empty() {
        bail!("the row is empty");
    }
    if keys.iter().any(|key| key == "input_ids") {
        bail!(
            "there are tokens ('input_ids') and no texts, expected texts, which are tokenised here"
        );
    }
    if let Some((ours, near)) = nearest(SHAPES.iter().copied().flatten().copied(), keys.iter()) {
        bail!("there is no '{ours}': is it '{near}'? Then set data.columns.{ours}={near}");
    }
    bail!(
        "there is neither {}. The row has {names}: name its columns, such as data.columns.prompt={} and \
         data.columns.completion={}",
        SHAPES.map(words).join(", nor "),
        keys[0],
        keys.get(1).unwrap_or(&keys[0])
    )
}

/// A text of a row; empty if there is none.
pub fn text(fields: &mut Fields, key: &str) -> Result<String> {
    match fields.remove(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => bail!("'{key}' is {}, expected a string", shown(&other)),
    }
}

/// A text of a row that must not be empty.
pub fn filled(fields: &mut Fields, key: &str) -> Result<String> {
    let text = text(fields, key)?;
    ensure!(!text.is_empty(), "'{key}' is empty");
    Ok(text)
}
