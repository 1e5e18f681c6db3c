//! The settings of data that all tasks have, and the words about bad data.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use serde::Deserialize;
use tch::Device;

use crate::progress;

/// The longest that a short row may be made.
const MOST_PADDED: usize = 1 << 16;

#[derive(Debug, Clone, Deserialize)]
pub struct Data {
    pub train: Option<PathBuf>,
    pub eval: Option<PathBuf>,
    pub eval_fraction: f64,
    pub bad_lines: BadLines,
    pub shuffle: bool,
    pub pad_to_multiple_of: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    Stop,
    Skip,
}

/// Bad lines, or rows: how many, and what is wrong with the first ones.
#[derive(Debug, Default)]
pub struct Bad {
    pub count: usize,
    shown: Vec<Fault>,
}

/// The error of one line, and of others in the same way.
#[derive(Debug)]
struct Fault {
    place: String,
    error: String,
    more: usize,
}

/// Faults that are shown.
const SHOWN: usize = 5;

impl Bad {
    pub fn add(&mut self, place: String, error: &anyhow::Error) {
        self.count += 1;
        let error = format!("{error:#}");
        let full = self.shown.len() > SHOWN;
        match self.shown.iter_mut().find(|fault| fault.error == error) {
            Some(fault) => fault.more += 1,
            None if full => {}
            None => self.shown.push(Fault { place, error, more: 0 }),
        }
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Fault { place, error, more }) in self.shown.iter().take(SHOWN).enumerate() {
            let begin = if number > 0 { "; " } else { "" };
            write!(f, "{begin}{place}: {error}")?;
            if *more > 0 {
                write!(f, " (and {more} more such)")?;
            }
        }
        f.write_str(if self.shown.len() > SHOWN { "; …" } else { "" })
    }
}

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
        let multiple = self.pad_to_multiple_of.unwrap_or(1);
        ensure!(
            (1..=MOST_PADDED).contains(&multiple),
            "'data.pad_to_multiple_of' is {multiple}, expected 1 to {MOST_PADDED}, or null"
        );
        self.train().map(drop)
    }

    /// The number that lengths of batches are multiples of.
    pub fn multiple(&self, device: Device) -> usize {
        // A GPU plans, and keeps memory, for each new length; a CPU pays for every place.
        let usual = if device == Device::Cpu { 1 } else { 64 };
        self.pad_to_multiple_of.unwrap_or(usual)
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

    /// Stops, or warns, if there are bad lines in `path`.
    pub fn refuse(&self, path: &Path, bad: &Bad) -> Result<()> {
        let count = bad.count;
        if count == 0 {
            return Ok(());
        }
        if self.bad_lines == BadLines::Stop {
            bail!(
                "{count} bad lines in '{}': {bad}. Mend them, or set 'data.bad_lines' to skip",
                path.display()
            );
        }
        progress::warn(format!("warning: {count} bad lines were skipped: {bad}"));
        Ok(())
    }
}
