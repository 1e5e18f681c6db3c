//! The settings of one run: those of every run, and those of its task's data.

use anyhow::{bail, ensure, Result};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;

use super::data::Data;
use super::ranks::Ranks;
use super::settings::Settings;
use super::yaml::Tree;

/// The settings of a run: `data` holds those of the task's data.
pub struct RunSettings<D> {
    pub common: Settings,
    pub files: Data,
    pub data: D,
    /// All of them, as they are kept in checkpoints.
    pub all: Value,
    pub ranks: Ranks,
}

/// The settings of a task's data.
pub trait DataSettings: DeserializeOwned {
    fn check(&self) -> Result<()>;
}

impl<D: DataSettings> RunSettings<D> {
    /// The settings of one of `ranks`.
    pub fn new(tree: &Tree, ranks: &Ranks) -> Result<Self> {
        let sizes: BatchSizes = tree.parse("")?;
        let mut of_rank = tree.clone();
        of_rank.all["batch_size"] = sizes.of_rank(ranks.size())?.into();
        let run = RunSettings {
            common: of_rank.parse("")?,
            files: tree.parse("data")?,
            data: tree.parse::<D>("data")?,
            all: tree.to_json()?,
            ranks: ranks.clone(),
        };
        run.common.check()?;
        run.common.check_cuda_graph(ranks)?;
        run.data.check()?;
        run.files.check()?;
        Ok(run)
    }
}

/// The settings that say how many rows a step has.
#[derive(Deserialize)]
struct BatchSizes {
    batch_size: Option<usize>,
    global_batch_size: Option<usize>,
    accumulation: usize,
}

impl BatchSizes {
    /// Rows in a batch of one of `ranks`.
    fn of_rank(&self, ranks: usize) -> Result<usize> {
        let accumulation = self.accumulation;
        let global = match (self.batch_size, self.global_batch_size) {
            (Some(size), None) => return Ok(size),
            (None, Some(global)) => global,
            (Some(_), Some(_)) => {
                bail!("both 'batch_size' and 'global_batch_size' are set: leave out one")
            }
            (None, None) => {
                bail!("neither 'batch_size' nor 'global_batch_size' is set: set one, such as batch_size: 8")
            }
        };
        let parts = ranks * accumulation.max(1);
        ensure!(
            global > 0 && global.is_multiple_of(parts),
            "'global_batch_size' is {global}, expected a multiple of {parts}: {ranks} ranks, each with 'accumulation' \
             {accumulation}"
        );
        Ok(global / parts)
    }
}
