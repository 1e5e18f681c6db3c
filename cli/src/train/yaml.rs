//! Settings from a YAML file and from `--set key=value`: keys that are not known are refused, with the nearest one.

use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use ln_tuning::{regular, yaml};
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

/// A setting, and the one that it stands in the place of.
const GLOBAL: &str = "global_batch_size";
const BATCH: &str = "batch_size";

/// The key of a run's stages.
const STAGES: &str = "stages";

/// Settings that all stages share.
const OF_ALL: [&str; 6] = ["task", "model", "out", "resume", "tasks", STAGES];

/// The settings as they were given: the file, then each assignment, with the words that name them in errors.
#[derive(Clone)]
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
            let text = regular::read_text(path)
                .with_context(|| format!("cannot read the settings '{}'", path.display()))?;
            let place = format!("in '{}'", path.display());
            match yaml::from_str(&text).with_context(|| place.clone())? {
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
            let value = yaml::from_str(value).with_context(|| place.clone())?;
            set(&mut whole, key.trim(), value).with_context(|| place.clone())?;
            stages.push((place, whole.clone()));
        }
        Ok(Given { whole, stages })
    }

    /// A single value, as text.
    pub fn text(&self, key: &str) -> Option<&str> {
        key.split('.').try_fold(&self.whole, |value, key| value.get(key))?.as_str()
    }

    /// A key, with a value or with keys below it.
    pub fn has(&self, key: &str) -> bool {
        key.split('.').try_fold(&self.whole, |value, key| value.get(key)).is_some()
    }

    /// These settings with one more, or another value of one, with the words that name it in errors.
    pub fn with(&self, place: String, key: &str, value: Value) -> Result<Self> {
        let (mut own, mut whole) = (Value::Mapping(Mapping::new()), self.whole.clone());
        set(&mut own, key, value.clone())?;
        set(&mut whole, key, value).with_context(|| place.clone())?;
        let stages = self.stages.iter().cloned().chain([(place, own)]).collect();
        Ok(Given { whole, stages })
    }

    /// The settings of each stage of the run: these, with its own in their place. There are none if it is one run.
    ///
    /// # Errors
    /// If `stages` is no list of settings, or a stage sets something that is of the whole run.
    pub fn stages(&self) -> Result<Vec<Self>> {
        let stage = |(number, own): (usize, &Value)| {
            let place = format!("in stage {}", number + 1);
            if let Some(key) = OF_ALL.iter().find(|key| own.get(**key).is_some()) {
                bail!("{place}: '{key}' is of the whole run: set it beside '{STAGES}'");
            }
            self.within(STAGES, place, own.clone())
        };
        self.list(STAGES)?.iter().enumerate().map(stage).collect()
    }

    /// The settings below a key, one for each of several runs or parts of one; none if it is not set.
    ///
    /// # Errors
    /// If it is no list of settings.
    pub fn list(&self, key: &str) -> Result<&[Value]> {
        match self.whole.get(key) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Sequence(list)) if !list.is_empty() => Ok(list),
            Some(other) => {
                let (shown, one) = (serde_yaml::to_string(other)?, key.trim_end_matches('s'));
                bail!(
                    "'{key}' is {}, expected a list of settings, one for each {one}",
                    shown.trim_end()
                )
            }
        }
    }

    /// These settings without the list below a key, of which `own` are put in their place.
    pub fn within(&self, key: &str, place: String, own: Value) -> Result<Self> {
        let mut whole = self.whole.clone();
        set(&mut whole, key, Value::Null)?;
        put(&mut whole, &own);
        let stages = self.stages.iter().cloned().chain([(place, own)]).collect();
        Ok(Given { whole, stages })
    }

    /// All settings: those of the sample, of which `model` and `data.train` are left out, with the given ones in
    /// their place.
    pub fn over(&self, sample: &str) -> Result<Tree> {
        let mut all: Value = serde_yaml::from_str(sample)?;
        set(&mut all, "model", "".into())?;
        set(&mut all, "data.train", Value::Null)?;
        for (place, given) in &self.stages {
            check(given, &all, "").with_context(|| place.clone())?;
        }
        put(&mut all, &self.whole);
        if self.whole.get(GLOBAL).is_some_and(|size| !size.is_null()) && !self.has(BATCH) {
            set(&mut all, BATCH, Value::Null)?;
        }
        let place = self.stages.first().map(|(place, _)| place.clone()).unwrap_or_default();
        Ok(Tree { all, place })
    }
}

/// All settings of a run.
#[derive(Clone)]
pub struct Tree {
    pub all: Value,
    /// The words that name them in errors.
    place: String,
}

impl Tree {
    /// The settings below a key, of which there may be more than `S` has.
    pub fn parse<S: DeserializeOwned>(&self, key: &str) -> Result<S> {
        let below = if key.is_empty() { &self.all } else { &self.all[key] };
        serde_path_to_error::deserialize(below.clone())
            .map_err(|error| {
                let path = error.path().to_string();
                let path = path.split('[').next().unwrap_or_default();
                let value = path.split('.').try_fold(below, |value, key| value.get(key));
                let shown = value.and_then(|value| serde_yaml::to_string(value).ok());
                let above = if key.is_empty() { String::new() } else { format!("{key}.") };
                let (shown, error) = (shown.unwrap_or_default(), error.into_inner());
                anyhow!("'{above}{path}' is {}: {error}", shown.trim_end())
            })
            .with_context(|| self.place.clone())
    }

    pub fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(&self.all).context("the settings are no JSON")
    }
}

/// Writes the given values over those of `all`.
fn put(all: &mut Value, given: &Value) {
    match (all, given) {
        (Value::Mapping(all), Value::Mapping(given)) => {
            for (key, given) in given {
                put(all.entry(key.clone()).or_insert(Value::Null), given);
            }
        }
        (all, given) => *all = given.clone(),
    }
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
