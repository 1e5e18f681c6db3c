//! Defaults of former versions: a run that began with them goes on with them.

use std::path::Path;

use serde_yaml::Value;

use super::checkpoint;
use super::yaml::{Given, Tree};

const DEFAULTS: [(&str, f64); 3] =
    [("optimizer.lr", 0.001), ("optimizer.weight_decay", 0.01), ("schedule.warmup_ratio", 0.)];

/// Puts the former defaults into settings that were not given, where `out` holds a run with them. Gives a line about
/// those that differ from today's.
pub fn keep(given: &Given, all: &mut Tree) -> Option<String> {
    let out = all.all.get("out")?.as_str()?.to_owned();
    // Whatever cannot be read is refused when the run begins.
    let before = checkpoint::settings(Path::new(&out)).ok().flatten()?;
    let mut kept = Vec::new();
    for (key, value) in DEFAULTS.into_iter().filter(|(key, _)| !given.has(key)) {
        let (room, name) = key.split_once('.')?;
        let now = all.all.get_mut(room)?.get_mut(name)?;
        if before[room][name].as_f64() == Some(value) && now.as_f64() != Some(value) {
            let today = now.as_f64().unwrap_or_default();
            kept.push(format!("'{key}' {value} (now {today})"));
            *now = Value::from(value);
        }
    }
    // Today's default is the same wherever that could be.
    let packing = all.all.get_mut("data").and_then(|data| data.get_mut("packing"));
    if let Some(now) = packing.filter(|_| !given.has("data.packing")) {
        if before["data"]["packing"] == true {
            *now = Value::from(true);
        }
    }
    let kept = kept.join(", ");
    (!kept.is_empty()).then(|| {
        format!("'{out}' holds a run with the defaults of its time, which it keeps: {kept}")
    })
}
