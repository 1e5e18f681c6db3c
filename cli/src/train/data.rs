//! The settings of data that all tasks have, and the words about bad data.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
pub struct Data {
    pub train: Option<PathBuf>,
    pub eval: Option<PathBuf>,
    pub eval_fraction: f64,
    pub bad_lines: BadLines,
    pub shuffle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    Stop,
    Skip,
}

/// Bad lines that are shown.
const SHOWN: usize = 5;

impl Data {
    pub fn check(&self) -> Result<()> {
        let fraction = self.eval_fraction;
        ensure!(
            (0. ..1.).contains(&fraction),
            "'data.eval_fraction' is {fraction}, expected 0 or more and below 1"
        );
        ensure!(
            fraction == 0. || self.eval.is_none(),
            "both 'data.eval' and 'data.eval_fraction' are set: leave out one"
        );
        self.train().map(drop)
    }

    pub fn train(&self) -> Result<&Path> {
        self.train.as_deref().context("'data.train' is not set")
    }

    /// The data to train on and the data to evaluate on, if there is any: a file of its own, or a part of the other.
    pub fn open<D>(
        &self,
        seed: u64,
        open: impl Fn(&Path) -> Result<D>,
        split: impl FnOnce(D, f64, u64) -> (D, D),
    ) -> Result<(D, Option<D>)> {
        let train = open(self.train()?)?;
        if let Some(path) = &self.eval {
            return Ok((train, Some(open(path)?)));
        }
        if self.eval_fraction == 0. {
            return Ok((train, None));
        }
        let (eval, train) = split(train, self.eval_fraction, seed);
        Ok((train, Some(eval)))
    }

    /// Stops, or warns, if there are bad lines in `path`; each comes with its place.
    pub fn refuse(&self, path: &Path, bad: &[String]) -> Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        let shown = bad.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        let more = if bad.len() > SHOWN { "; …" } else { "" };
        if self.bad_lines == BadLines::Stop {
            bail!(
                "{} bad lines in '{}': {shown}{more}. Mend them, or set 'data.bad_lines' to skip",
                bad.len(),
                path.display()
            );
        }
        eprintln!("warning: {} bad lines were skipped: {shown}{more}", bad.len());
        Ok(())
    }
}
