//! Checkpoints: a directory for each, which is there whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::pretrained::{Frozen, Place};
use ln_tuning::{regular, LnTuningModel, LoadOptions, Optimizer, SaveOptions, SavedAdapter};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::batches::{Plan, Share};
use super::settings::{Resume, Settings, FREE};

/// The position of a run. Weights and moments are files beside it; random numbers follow from the seed and the step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub step: u64,
    pub epoch: u64,
    /// Rows of this epoch that have been trained on, by all ranks: documents, or what they were packed into.
    #[serde(default)]
    pub rows: usize,
    /// Batches, in place of rows, of former versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    /// Rows that stand together in the order of the data, as when the run began; former versions do not say it.
    #[serde(default)]
    pub group: usize,
    /// Ranks of the run so far.
    #[serde(default)]
    world_size: usize,
    /// Rows in a step so far.
    #[serde(default)]
    global_batch_size: usize,
    /// The step and the value of the lowest evaluation.
    pub best: Option<(u64, f64)>,
    pub settings: Value,
    pub data: String,
}

impl State {
    fn new(settings: Value, data: String, plan: &Plan) -> Self {
        State {
            step: 0,
            epoch: 0,
            rows: 0,
            batch: None,
            group: plan.group,
            world_size: plan.share.ranks,
            global_batch_size: plan.share.global_batch_size(),
            best: None,
            settings,
            data,
        }
    }

    /// Refuses a position that no run reaches, since the file was changed; and finds that of a former version, which
    /// had one rank, in its order.
    fn locate(&mut self, step: u64, plan: &Plan) -> Result<()> {
        let cure = "was it changed? Remove this checkpoint";
        let State { step: found, epoch, batch, .. } = *self;
        ensure!(found == step, "'step' is {found}, expected {step} as in its name: {cure}");
        ensure!(epoch <= step, "'epoch' is {epoch}, expected {step} at most: {cure}");
        if self.group == 0 {
            let size = |key: &str| self.settings[key].as_u64().unwrap_or(1).max(1) as usize;
            self.group = size("batch_size");
            self.world_size = 1;
            self.global_batch_size = self.group.saturating_mul(size("accumulation"));
            let groups = Plan { group: self.group, ..plan.clone() }.groups(epoch);
            let (batch, batches) = (batch.context("'batch' is not there")?, groups.len());
            ensure!(batch <= batches, "'batch' is {batch}, expected {batches} at most: {cure}");
            self.rows = groups[..batch].iter().map(Vec::len).sum();
            self.batch = None;
        }
        if let Some(batch) = self.batch {
            bail!("'batch' is {batch}, expected 'rows' alone: {cure}");
        }
        let (rows, all) = (self.rows, plan.lengths.len());
        ensure!(rows <= all, "'rows' is {rows}, expected {all} at most: {cure}");
        Ok(())
    }

    /// A line, if steps have another size from now on.
    fn change(&self, now: Share) -> Option<String> {
        let (size, before) = (now.global_batch_size(), self.global_batch_size);
        (size != before).then(|| {
            format!(
                "a step has {size} rows from now on: 'batch_size' {} × 'accumulation' {} × {} ranks; it had {before}, with {} \
                 ranks. The data goes on where it stood",
                now.batch_size, now.accumulation, now.ranks, self.world_size
            )
        })
    }
}

/// Settings that may change with the number of ranks.
const SIZES: [&str; 3] = ["batch_size", "accumulation", "global_batch_size"];

/// The record of several runs, which have folders of their own.
pub const RUNS: &str = "runs.json";

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const UNFINISHED: &str = ".unfinished-";

fn folder(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

pub fn dir(out: &Path, step: u64) -> PathBuf {
    folder(out).join(format!("step-{step}"))
}

/// Writes a checkpoint, unless it is there: the same step of the same run is the same.
pub fn save(
    out: &Path,
    state: &State,
    tuned: &LnTuningModel,
    adapter: &str,
    optimizer: &mut Optimizer,
) -> Result<()> {
    let (folder, dir) = (folder(out), dir(out, state.step));
    if dir.exists() {
        return Ok(());
    }
    let place = || format!("cannot write the checkpoint '{}'", dir.display());
    let unfinished = folder.join(format!("{UNFINISHED}{}", state.step));
    let mut write = || -> Result<()> {
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished)?;
        tuned.save_pretrained_with(&unfinished, &SaveOptions::default().only(adapter))?;
        optimizer.save(unfinished.join(OPTIMIZER))?;
        fs::write(unfinished.join(STATE), serde_json::to_string_pretty(state)?)?;
        File::open(unfinished.join(STATE))?.sync_all()?;
        fs::rename(&unfinished, &dir)?;
        File::open(&folder)?.sync_all()?;
        Ok(())
    };
    let written = write().with_context(place);
    if written.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    written
}

/// The steps of the complete checkpoints, in ascending order.
pub fn steps(out: &Path) -> Result<Vec<u64>> {
    let folder = folder(out);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    let entries = fs::read_dir(&folder);
    for entry in entries.with_context(|| format!("cannot read '{}'", folder.display()))? {
        let name = entry?.file_name();
        steps
            .extend(name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The settings of the run whose checkpoints are in `out`, if there are any.
pub fn settings(out: &Path) -> Result<Option<Value>> {
    let Some(step) = steps(out)?.pop() else { return Ok(None) };
    let text = regular::read_text(&dir(out, step).join(STATE))?;
    let state: State = serde_json::from_str(&text)?;
    Ok(Some(state.settings))
}

/// The step of the newest checkpoint of a run that is alone.
///
/// # Errors
/// If the folder is that of several runs.
pub fn newest(out: &Path) -> Result<Option<u64>> {
    ensure!(
        !out.join(RUNS).exists(),
        "'{}' holds several runs, of a sweep or of tasks: choose another 'out', or repeat their command to go on",
        out.display()
    );
    Ok(steps(out)?.pop())
}

/// The state that a run starts from: that of the checkpoint of this step, which must be of a run with these settings
/// (`all`) and data, or, without one, step 0. The plan takes over its order. Also gives a line about a change of what a
/// step is.
pub fn begin_at(
    step: Option<u64>,
    settings: &Settings,
    all: Value,
    data: String,
    plan: &mut Plan,
) -> Result<(State, Option<String>)> {
    let out = &settings.out;
    let Some(step) = step else {
        return Ok((State::new(all, data, plan), None));
    };
    let path = dir(out, step).join(STATE);
    let place = || format!("the checkpoint '{}' cannot be read", path.display());
    let text = regular::read_text(&path).with_context(place)?;
    let mut state: State = serde_json::from_str(&text).with_context(place)?;
    let located = state.locate(step, plan);
    let share = plan.share;
    let same = state.global_batch_size == share.global_batch_size();
    if let Value::Object(before) = &mut state.settings {
        // Former versions had no other.
        before.entry("base").or_insert("mapped".into());
        if same || state.world_size != share.ranks {
            SIZES.iter().for_each(|key| drop(before.insert((*key).into(), all[*key].clone())));
        }
    }
    let (holds, cure) =
        (format!("'{}' holds", out.display()), "choose another 'out', or undo the change");
    if let Some((key, before, now)) = difference(&state.settings, &all, "", &FREE) {
        bail!("{holds} a run with {key}: {before}, and it is {now} now: {cure}");
    }
    if state.data != data {
        bail!("{holds} a run on other data: {cure}");
    }
    located.with_context(place)?;
    if settings.resume == Resume::Never {
        bail!(
            "{holds} checkpoints of a run, and 'resume' is never: choose another 'out', or set 'resume' to auto"
        );
    }
    let line = state.change(share);
    plan.group = state.group;
    state.world_size = share.ranks;
    state.global_batch_size = share.global_batch_size();
    Ok((state, line))
}

/// Loads weights and moments from a directory that is the checkpoint `named`, or a copy of it.
pub fn load(
    dir: &Path,
    named: &Path,
    tuned: &mut LnTuningModel,
    adapter: &str,
    optimizer: &mut Optimizer,
) -> Result<()> {
    let mut take = || -> Result<()> {
        let weights = SavedAdapter::open(dir)?.tensors;
        tuned.load_state_dict(adapter, &weights, &LoadOptions::default())?;
        optimizer.load(dir.join(OPTIMIZER))?;
        Ok(())
    };
    take().with_context(|| format!("the checkpoint '{}' cannot be read", named.display()))
}

/// Removes the checkpoints behind a step, from which the run goes on.
pub fn forget_behind(out: &Path, step: u64) -> Result<()> {
    steps(out)?.into_iter().filter(|later| *later > step).try_for_each(|later| remove(out, later))
}

/// Removes a checkpoint, under another name first: it is never there in part.
fn remove(out: &Path, step: u64) -> Result<()> {
    let gone = folder(out).join(format!("{UNFINISHED}{step}"));
    let _ = fs::remove_dir_all(&gone);
    let dir = dir(out, step);
    let removed = fs::rename(&dir, &gone).and_then(|()| fs::remove_dir_all(&gone));
    removed.with_context(|| format!("cannot remove '{}'", dir.display()))
}

/// Keeps the newest `keep_last` checkpoints and the best one. Unfinished ones go as well.
pub fn rotate(out: &Path, keep_last: usize, best: Option<u64>) -> Result<()> {
    let steps = steps(out)?;
    let entries = std::fs::read_dir(folder(out)).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        let _ = fs::remove_dir_all(entry.path());
    }
    let old = &steps[..steps.len().saturating_sub(keep_last)];
    old.iter().filter(|step| Some(**step) != best).try_for_each(|step| remove(out, *step))
}

/// The first key whose values differ, with both; those that are `free` may.
pub fn difference(
    before: &Value,
    now: &Value,
    above: &str,
    free: &[&str],
) -> Option<(String, Value, Value)> {
    if let (Value::Object(a), Value::Object(b)) = (before, now) {
        let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
        let of = |map: &serde_json::Map<String, Value>, key: &String| {
            map.get(key).cloned().unwrap_or(Value::Null)
        };
        let counts = |key: &&String| !free.contains(&format!("{above}{key}").as_str());
        return keys
            .filter(counts)
            .find_map(|key| difference(&of(a, key), &of(b, key), &format!("{above}{key}."), free));
    }
    let key = || format!("'{}'", above.trim_end_matches('.'));
    let same = are_same(before, now) || above == "base." && have_same_values(before, now);
    (!same).then(|| (key(), before.clone(), now.clone()))
}

/// True for equal values. 1 and 1.0 are the same number.
fn are_same(before: &Value, now: &Value) -> bool {
    match (before, now) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| are_same(a, b))
        }
        (Value::Number(a), Value::Number(b)) => {
            a == b || !(a.is_u64() && b.is_u64()) && a.as_f64() == b.as_f64()
        }
        _ => before == now,
    }
}

/// True for bases of one form: in any place, they compute the same.
fn have_same_values(before: &Value, now: &Value) -> bool {
    let form = |base: &Value| {
        let base = base.as_str()?.parse::<Frozen>().ok()?;
        Some(base.place(Place::default()).resident(0.))
    };
    form(before).is_some_and(|before| Some(before) == form(now))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_goes_on_with_the_numbers_that_it_wrote() {
        // As from NumPy's logspace: JSON must be read to the last bit.
        for number in [3.740_797_042_846_679_7, 0.374_079_704_284_667_97, 1e-300 / 3.] {
            let now = json!({"lr": number, "betas": [number, 1]});
            let before: Value = serde_json::from_str(&now.to_string()).unwrap();
            assert!(difference(&before, &now, "", &FREE).is_none(), "{before}, {now}");
            let other = json!({"lr": number, "betas": [number * (1. + 1e-15), 1]});
            assert!(difference(&before, &other, "", &FREE).is_some(), "{before}, {other}");
        }
        let differ = |a: Value, b: Value| difference(&a, &b, "", &FREE).is_some();
        assert!(
            !differ(json!({"a": 1}), json!({"a": 1.0})) && differ(json!({"a": 1}), json!({"a": 2}))
        );
        assert!(differ(json!({"seed": u64::MAX}), json!({"seed": u64::MAX - 1})));
        assert!(differ(json!({"a": [1]}), json!({"a": [1, 2]})));
    }

    #[test]
    fn a_run_goes_on_with_its_base_in_another_place_but_not_in_another_form() {
        let differs = |before: &str, now: &str| {
            difference(&json!({"base": before}), &json!({"base": now}), "", &FREE).is_some()
        };
        for (before, now) in
            [("mapped", "streamed"), ("nf4, device", "nf4"), ("gguf", "gguf, streamed")]
        {
            assert!(!differs(before, now) && !differs(now, before), "{before}, {now}");
        }
        for (before, now) in [("mapped", "nf4"), ("int8, streamed", "streamed"), ("gguf", "x")] {
            assert!(differs(before, now) && differs(now, before), "{before}, {now}");
        }
        let other = json!({"model": "nf4"});
        assert!(difference(&json!({"model": "nf4, device"}), &other, "", &FREE).is_some());
    }
}
