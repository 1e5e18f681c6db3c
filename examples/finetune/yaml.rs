//! Settings from a YAML file and from `--set key=value`: keys that are not known are refused, with the nearest one.

use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
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
    serde_yaml::from_value(settings.clone())
        .map_err(|error| anyhow!(culprit::<S>(&settings, &known).unwrap_or(error.to_string())))
        .with_context(place)
}

/// The key whose value does not fit: alone among the defaults it fails as well.
fn culprit<S: DeserializeOwned>(given: &Value, known: &Value) -> Option<String> {
    let mut places = vec![(String::new(), given)];
    while let Some((above, value)) = places.pop() {
        if let (Value::Mapping(map), false) = (value, above.matches('.').count() > 1) {
            let inner = map.iter().filter_map(|(key, value)| Some((key.as_str()?, value)));
            places.extend(inner.map(|(key, value)| (format!("{above}{key}."), value)));
        }
        let key = above.trim_end_matches('.');
        let mut alone = known.clone();
        if key.is_empty() || value.is_mapping() || set(&mut alone, key, value.clone()).is_err() {
            continue;
        }
        if let Err(error) = serde_yaml::from_value::<S>(alone) {
            let shown = serde_yaml::to_string(value).unwrap_or_default();
            return Some(format!("'{key}' is {}: {error}", shown.trim_end()));
        }
    }
    None
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
