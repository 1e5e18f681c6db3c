//! The state from which a run goes on: rank 0 finds it, and all ranks have it.

use std::path::Path;

use anyhow::{bail, ensure, Result};
use ln_tuning::{LnTuningModel, Optimizer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::batches::Plan;
use super::checkpoint::{self, State};
use super::ranks::Ranks;
use super::settings::{Settings, FREE};

/// The state that all ranks begin with: that of rank 0.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Begun {
    pub settings: Value,
    pub data: String,
    pub state: State,
    /// A line about a change of what a step is.
    pub change: Option<String>,
}

/// Settings that may differ between ranks, beside those that may differ between the parts of a run.
const OF_RANK: [&str; 5] = ["model", "out", "data.train", "data.eval", "data.images"];

impl Begun {
    /// That of rank 0, whose checkpoint of this step it goes on from.
    pub fn find(
        step: Option<u64>,
        settings: &Settings,
        all: &Value,
        data: String,
        plan: &mut Plan,
    ) -> Result<Self> {
        let (state, change) =
            checkpoint::begin_at(step, settings, all.clone(), data.clone(), plan)?;
        Ok(Begun { settings: all.clone(), data, state, change })
    }

    /// Refuses ranks that would not train the same. `step` is the newest that may be there.
    pub fn check(&self, settings: &Value, data: &str, own: &Settings, step: u64) -> Result<()> {
        let cure = "give all ranks the same";
        let free = [&FREE[..], &OF_RANK].concat();
        if let Some((key, first, here)) =
            checkpoint::difference(&self.settings, settings, "", &free)
        {
            bail!("{key} is {here} on this rank and {first} on rank 0: {cure}");
        }
        ensure!(self.data == data, "the data of this rank are not those of rank 0: {cure}");
        let newest = checkpoint::steps(&own.out)?.pop();
        ensure!(
            newest.is_none_or(|newest| newest <= step),
            "rank 0 goes on from step {step}, and this rank has a checkpoint of step {} in '{}': let 'out' be one folder \
             that all machines share, or let rank 0 be on this machine",
            newest.unwrap_or_default(),
            own.out.display()
        );
        Ok(())
    }
}

/// Loads weights and moments of the checkpoint of this step, which rank 0 has, on all ranks.
pub(super) fn load(
    ranks: &Ranks,
    (out, step): (&Path, u64),
    tuned: &mut LnTuningModel,
    adapter: &str,
    optimizer: &mut Optimizer,
) -> Result<()> {
    let dir = checkpoint::dir(out, step);
    let copy = ranks.directory(&dir)?;
    ranks.agree(checkpoint::load(&copy.path, &dir, tuned, adapter, optimizer))
}
