//! Settings from a YAML file and from `--set key=value`: keys that are not known are refused, with the nearest one.

use std::path::Path;

use anyhow::{bail, Context, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_yaml::{Mapping, Value};

/// Reads settings of type `S`; what the file does not say is `S::default()`'s.
pub fn read<S>(path: &Path, overrides: &[String]) -> Result<S>
where
    S: Default + Serialize + DeserializeOwned,
{
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the settings '{}'", path.display()))?;
    let place = || format!("in '{}'", path.display());
    let given: Value = serde_yaml::from_str(&text).with_context(place)?;
    let mut settings = match given {
        Value::Null => Value::Mapping(Mapping::new()),
        given => given,
    };
    let known = serde_yaml::to_value(S::default())?;
    check(&settings, &known, "").with_context(place)?;
    for assignment in overrides {
        let place = || format!("in --set {assignment}");
        let (key, value) = assignment
            .split_once('=')
            .with_context(|| format!("--set '{assignment}', expected key=value"))?;
        let value: Value = serde_yaml::from_str(value).with_context(place)?;
        set(&mut settings, key.trim(), value).with_context(place)?;
        check(&settings, &known, "").with_context(place)?;
    }
    // By way of text: its errors say at which key.
    serde_yaml::from_str(&serde_yaml::to_string(&settings)?).with_context(place)
}

fn check(given: &Value, known: &Value, above: &str) -> Result<()> {
    let Value::Mapping(known) = known else { return Ok(()) };
    let Value::Mapping(given) = given else {
        let above = above.trim_end_matches('.');
        bail!("'{above}' is a single value, expected keys: {}", listed(known));
    };
    for (key, value) in given {
        let Some(key) = key.as_str() else { bail!("the key {key:?} is not a word") };
        match known.get(key) {
            Some(inner) => check(value, inner, &format!("{above}{key}."))?,
            None => {
                let names = known.keys().filter_map(Value::as_str);
                let nearest =
                    names.max_by(|a, b| similarity(a, key).total_cmp(&similarity(b, key)));
                let nearest = nearest.unwrap_or_default();
                bail!(
                    "the key '{above}{key}' is not known: is it '{above}{nearest}'? All there are: {}",
                    listed(known)
                );
            }
        }
    }
    Ok(())
}

fn similarity(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}

fn listed(known: &Mapping) -> String {
    known.keys().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn set(settings: &mut Value, key: &str, value: Value) -> Result<()> {
    let Value::Mapping(map) = settings else {
        bail!("'{key}' stands below a single value");
    };
    match key.split_once('.') {
        None => {
            map.insert(key.into(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = map.entry(first.into()).or_insert_with(|| Mapping::new().into());
            set(inner, rest, value)
        }
    }
}
