//! The runs of a sweep: all combinations of the values that some settings are given.

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::yaml;
use serde_yaml::Value;

use crate::train::yaml::Given;

/// The most runs of one sweep.
const MOST: usize = 256;

/// Settings that runs of a sweep may have values of their own for, with all below them.
pub const SWEPT: [&str; 10] = [
    "optimizer",
    "schedule",
    "clip_norm",
    "loss_scale",
    "seed",
    "batch_size",
    "accumulation",
    "global_batch_size",
    "epochs",
    "max_steps",
];

/// Settings that they may not, and the reason.
const REFUSED: [(&[&str], &str); 5] = [
    (
        &["model", "kind", "base", "device", "tf32", "deterministic", "threads", "checkpointing"],
        "all runs of a sweep share one base",
    ),
    (
        &["data"],
        "all runs of a sweep learn from the same data; for several data sets there is 'tasks'",
    ),
    (
        &["adapter", "recipe", "norms", "layers", "precision"],
        "all runs of a sweep train the same tensors",
    ),
    (
        &[
            "task",
            "out",
            "resume",
            "eval_interval",
            "save_interval",
            "keep_last",
            "tensorboard",
            "workers",
            "stages",
            "tasks",
        ],
        "it is of the sweep as a whole",
    ),
    (&["cuda_graph"], "it is for a run alone"),
];

/// A run: its name, and the settings.
pub struct Named {
    pub name: String,
    pub given: Given,
}

/// The values of one setting.
struct Axis<'a> {
    key: &'a str,
    values: Vec<(Value, String)>,
}

impl<'a> Axis<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let form = "expected key=value,value, such as optimizer.lr=1e-3,3e-3";
        let (key, values) =
            text.split_once('=').with_context(|| format!("--sweep '{text}', {form}"))?;
        let key = key.trim();
        ensure!(!key.is_empty(), "--sweep '{text}' names no setting, {form}");
        check(key)?;
        let list = yaml::from_str(&format!("[{values}]"));
        let list = list.with_context(|| format!("in --sweep {text}"))?;
        let Value::Sequence(mut list) = list else { bail!("--sweep '{text}', {form}") };
        // Values in brackets are a list of YAML.
        if let [Value::Sequence(inner)] = list.as_slice() {
            list = inner.clone();
        }
        ensure!(!list.is_empty(), "--sweep '{text}' has no values, {form}");
        let mut values: Vec<(Value, String)> = Vec::new();
        for value in list {
            let shown = shown(&value)?;
            ensure!(
                values.iter().all(|(_, other)| *other != shown),
                "--sweep '{text}' has the value {shown} twice: leave one out"
            );
            values.push((value, shown));
        }
        Ok(Axis { key, values })
    }
}

/// Refuses a setting that cannot be swept. One that does not exist is found with all others.
fn check(key: &str) -> Result<()> {
    let first = key.split('.').next().unwrap_or_default();
    let refused = REFUSED.iter().find(|(keys, _)| keys.contains(&first));
    if let Some((_, reason)) = refused {
        bail!("'{key}' cannot be swept: {reason}. What can be: {}", SWEPT.join(", "));
    }
    Ok(())
}

/// A value in one line.
fn shown(value: &Value) -> Result<String> {
    Ok(match value {
        Value::Null => "null".to_owned(),
        Value::String(text) => text.clone(),
        // 1 and 1.0 are the same number.
        Value::Number(number) => number.as_f64().map_or(number.to_string(), |number| {
            if number != 0. && !(1e-3..1e6).contains(&number.abs()) {
                format!("{number:e}")
            } else {
                number.to_string()
            }
        }),
        other => serde_json::to_string(other)?,
    })
}

/// The runs of these sweeps, `key=value,value` each: the first changes the slowest.
pub fn runs(given: &Given, sweeps: &[String]) -> Result<Vec<Named>> {
    let axes = sweeps.iter().map(|text| Axis::parse(text)).collect::<Result<Vec<_>>>()?;
    for (at, axis) in axes.iter().enumerate() {
        let under = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}."));
        let other = axes[..at].iter().find(|o| under(o.key, axis.key) || under(axis.key, o.key));
        if let Some(other) = other {
            bail!(
                "--sweep sets '{}' and '{}': give one setting all of its values in one --sweep",
                other.key,
                axis.key
            );
        }
    }
    let count = axes.iter().fold(1, |count: usize, axis| count.saturating_mul(axis.values.len()));
    ensure!(
        count <= MOST,
        "--sweep asks for {count} runs, of which each keeps weights, gradients and two moments: {MOST} are the most"
    );
    let mut runs = vec![Named { name: String::new(), given: given.clone() }];
    for axis in &axes {
        let short = axis.key.rsplit('.').next().unwrap_or_default();
        let unique =
            axes.iter().filter(|other| other.key.rsplit('.').next() == Some(short)).count() == 1;
        let key = if unique { short } else { axis.key };
        let mut more = Vec::with_capacity(runs.len() * axis.values.len());
        for run in &runs {
            for (value, shown) in &axis.values {
                let place = format!("in --sweep {}={shown}", axis.key);
                let begin = if run.name.is_empty() { "" } else { "," };
                more.push(Named {
                    name: format!("{}{begin}{key}={shown}", run.name),
                    given: run.given.with(place, axis.key, value.clone())?,
                });
            }
        }
        runs = more;
    }
    Ok(runs)
}

/// Folders for the runs of these names, all different.
pub fn folders<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut folders: Vec<String> = Vec::new();
    for name in names {
        let kept = |c: char| c.is_alphanumeric() || "=,+-_.".contains(c);
        let plain: String = name.chars().map(|c| if kept(c) { c } else { '_' }).take(80).collect();
        // No place of its own, such as '..'.
        let plain = if plain.starts_with('.') { format!("_{plain}") } else { plain };
        let mut folder = plain.clone();
        let mut number = 1;
        // Some file systems do not tell large letters from small ones.
        while folders.iter().any(|other| other.to_lowercase() == folder.to_lowercase()) {
            number += 1;
            folder = format!("{plain}-{number}");
        }
        folders.push(folder);
    }
    folders
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given() -> Given {
        Given::read(None, &["model=m".to_owned()]).unwrap()
    }

    fn names(sweeps: &[&str]) -> Result<Vec<String>, String> {
        let sweeps: Vec<String> = sweeps.iter().map(|s| (*s).to_owned()).collect();
        let runs = runs(&given(), &sweeps).map_err(|error| format!("{error:#}"))?;
        Ok(runs.into_iter().map(|run| run.name).collect())
    }

    #[test]
    fn runs_are_all_combinations_and_the_first_setting_changes_the_slowest() {
        let expected = ["lr=0.001,seed=0", "lr=0.001,seed=1", "lr=1e-5,seed=0", "lr=1e-5,seed=1"];
        assert_eq!(names(&["optimizer.lr=1e-3,1e-5", "seed=0,1"]).unwrap(), expected);
        let places =
            names(&["optimizer.lr={default: 1, pre: 0.5},2", "schedule.name=linear, cosine"]);
        assert_eq!(places.unwrap()[0], "lr={\"default\":1,\"pre\":0.5},name=linear");
        assert_eq!(names(&["clip_norm=null,1"]).unwrap(), ["clip_norm=null", "clip_norm=1"]);
        assert_eq!(names(&["seed=[3, 1]"]).unwrap(), ["seed=3", "seed=1"]);
        let lists = names(&["optimizer.betas=[0.9,0.99],[0.9,0.999]"]).unwrap();
        assert_eq!(lists, ["betas=[0.9,0.99]", "betas=[0.9,0.999]"]);
        let runs = runs(&given(), &["optimizer.lr=1e-3,2".to_owned()]).unwrap();
        assert!(runs[1].given.has("optimizer.lr") && runs[1].given.text("model") == Some("m"));
    }

    #[test]
    fn bad_sweeps_are_refused_with_the_reason_and_the_cure() {
        for (sweeps, words) in [
            (&["optimizer.lr"][..], "expected key=value,value"),
            (&["=1,2"], "names no setting"),
            (&["optimizer.lr="], "has no values"),
            (&["optimizer.lr= "], "has no values"),
            (&["optimizer.lr=[]"], "has no values"),
            (&["optimizer.lr=1,1.0"], "has the value 1 twice"),
            (&["seed=1,2", "seed=3"], "'seed' and 'seed': give one setting"),
            (&["optimizer.lr.pre=1,2", "optimizer.lr=3"], "'optimizer.lr.pre' and 'optimizer.lr'"),
            (&["optimizer.lr=[1"], "in --sweep optimizer.lr=[1"),
            (&["model=a,b"], "'model' cannot be swept: all runs of a sweep share one base"),
            (&["data.max_length=1,2"], "there is 'tasks'"),
            (&["norms=peft,all"], "train the same tensors"),
            (&["keep_last=1,2"], "of the sweep as a whole"),
        ] {
            let error = names(sweeps).unwrap_err();
            assert!(error.contains(words), "{sweeps:?}: {error}");
        }
        let many: Vec<String> = (0..17).map(|seed| seed.to_string()).collect();
        let many = many.join(",");
        let error = names(&[&format!("seed={many}"), &format!("optimizer.lr={many}")]).unwrap_err();
        assert!(error.contains("289 runs") && error.contains("256 are the most"), "{error}");
    }

    proptest! {
        #[test]
        fn no_sweep_panics_and_runs_have_folders_of_their_own(
            sweeps in proptest::collection::vec("[a-z.]{0,9}=?[-0-9a-zA-Z.,{}: '/]{0,12}", 0..3),
        ) {
            if let Ok(runs) = runs(&given(), &sweeps) {
                let folders = folders(runs.iter().map(|run| run.name.as_str()));
                let mut different: Vec<String> = folders.iter().map(|f| f.to_lowercase()).collect();
                different.sort();
                different.dedup();
                prop_assert_eq!(different.len(), runs.len());
                prop_assert!(folders.iter().all(|f| !f.contains(['/', '\\']) && !f.starts_with('.')));
            }
        }
    }
}
