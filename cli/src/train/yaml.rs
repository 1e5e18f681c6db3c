//! Settings from a YAML file and from `--set key=value`: keys that are not known are refused, with the nearest one.

use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_yaml::{Mapping, Value};

/// The settings as they were given: the file, then each assignment, with the words that name them in errors.
pub struct Given {
    whole: Value,
    /// Every stage on the way to the whole.
    stages: Vec<(String, Value)>,
}

impl Given {
    pub fn read(path: Option<&Path>, assignments: &[String]) -> Result<Self> {
        let mut whole = Value::Mapping(Mapping::new());
        let mut stages = Vec::new();
        if let Some(path) = path {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the settings '{}'", path.display()))?;
            let place = format!("in '{}'", path.display());
            match serde_yaml::from_str(&text).with_context(|| place.clone())? {
                Value::Null => {}
                given => whole = given,
            }
            stages.push((place, whole.clone()));
        }
        for assignment in assignments {
            let place = format!("in --set {assignment}");
            let (key, value) = assignment
                .split_once('=')
                .with_context(|| format!("--set '{assignment}', expected key=value"))?;
            let value = serde_yaml::from_str(value).with_context(|| place.clone())?;
            set(&mut whole, key.trim(), value).with_context(|| place.clone())?;
            stages.push((place, whole.clone()));
        }
        Ok(Given { whole, stages })
    }

    /// A single value, as text.
    pub fn text(&self, key: &str) -> Option<&str> {
        key.split('.').try_fold(&self.whole, |value, key| value.get(key))?.as_str()
    }

    /// Settings of type `S`; what is not given is `S::default()`'s.
    pub fn settings<S: Default + Serialize + DeserializeOwned>(&self) -> Result<S> {
        let known = serde_yaml::to_value(S::default())?;
        for (place, given) in &self.stages {
            check(given, &known, "").with_context(|| place.clone())?;
        }
        let place = || self.stages.first().map(|(place, _)| place.clone()).unwrap_or_default();
        serde_yaml::from_value(self.whole.clone())
            .map_err(
                |error| anyhow!(culprit::<S>(&self.whole, &known).unwrap_or(error.to_string())),
            )
            .with_context(place)
    }
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
                let like = |name: &&str| strsim::jaro_winkler(name, key);
                let nearest = names.max_by(|a, b| like(a).total_cmp(&like(b)));
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

fn listed(known: &Mapping) -> String {
    known.keys().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn set(settings: &mut Value, key: &str, value: Value) -> Result<()> {
    let Value::Mapping(map) = settings else {
        bail!("'{key}' is below a single value");
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
