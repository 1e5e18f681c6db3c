//! The runs of `tasks`: each with data of its own, for an adapter of its own.

use anyhow::{bail, ensure, Context, Result};
use serde_yaml::Value;

use super::grid::{Named, SWEPT};
use crate::train::yaml::Given;

/// The key of the list.
const TASKS: &str = "tasks";
const NAME: &str = "name";

/// Settings that all tasks share.
const SHARED: [&str; 22] = [
    "task",
    "model",
    "out",
    "resume",
    "device",
    "kind",
    "base",
    "tf32",
    "deterministic",
    "threads",
    "adapter",
    "recipe",
    "norms",
    "layers",
    "precision",
    "checkpointing",
    "keep_last",
    "tensorboard",
    "workers",
    "cuda_graph",
    "stages",
    "tasks",
];

/// Settings that a task may have of its own: those of a sweep's run, and these.
pub fn allowed() -> Vec<&'static str> {
    [&["data"][..], &SWEPT, &["eval_interval", "save_interval"]].concat()
}

/// The tasks, with all settings of each; none if it is one run.
///
/// # Errors
/// If `tasks` is no list of settings with names, all different, or a task sets what all share.
pub fn runs(given: &Given) -> Result<Vec<Named>> {
    let mut runs: Vec<Named> = Vec::new();
    for (number, own) in given.list(TASKS)?.iter().enumerate() {
        let place = format!("in task {}", number + 1);
        let Value::Mapping(own) = own else {
            let shown = serde_yaml::to_string(own)?;
            bail!("{place}: it is {}, expected settings, such as name and data", shown.trim_end());
        };
        let mut own = own.clone();
        let name = own.remove(NAME);
        let name = name.as_ref().and_then(Value::as_str).with_context(|| {
            format!("{place}: it has no '{NAME}', expected a word: that of its folder")
        })?;
        let plain = |c: char| c.is_alphanumeric() || "-_".contains(c);
        ensure!(
            !name.is_empty() && name.len() <= 100 && name.chars().all(plain),
            "{place}: its name is '{name}', expected letters, digits, '-' and '_', 100 at most: it is that of a folder"
        );
        // Some file systems do not tell large letters from small ones.
        let same = |run: &&Named| run.name.to_lowercase() == name.to_lowercase();
        if let Some(other) = runs.iter().find(same) {
            bail!(
                "{place}: its name is '{name}', and another one is '{}': choose another",
                other.name
            );
        }
        let place = format!("in task '{name}'");
        for key in own.keys().filter_map(Value::as_str) {
            ensure!(
                !SHARED.contains(&key),
                "{place}: '{key}' is of all tasks, which share one base and train the same tensors: set it beside \
                 '{TASKS}'. What a task may set: {}",
                allowed().join(", ")
            );
        }
        let given = given.within(TASKS, place, Value::Mapping(own))?;
        runs.push(Named { name: name.to_owned(), given });
    }
    Ok(runs)
}
