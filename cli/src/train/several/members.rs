//! The runs, what they are for, and which of them are of one task.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use tch::Tensor;

use crate::train::ranks::Ranks;
use crate::train::run_settings::{DataSettings, RunSettings};
use crate::train::yaml::Tree;

/// The runs, and what is of all of them.
pub struct Several<D> {
    /// The folder of all results; that of each run is below.
    pub out: PathBuf,
    pub members: Vec<Member<D>>,
    pub purpose: Purpose,
    /// Each ends to the bit as it would alone: no rows of several runs go through the model together.
    pub exact: bool,
    ranks: Ranks,
}

/// A run.
pub struct Member<D> {
    pub name: String,
    pub run: RunSettings<D>,
}

/// The work of the runs: their tasks, and the number of each run's.
pub struct Work<'t, T> {
    pub tasks: &'t [T],
    pub of: &'t [usize],
    /// The first weights of a run, under PEFT's keys, where they are not those of the base.
    pub first_weights: &'t [Option<Weights>],
}

pub type Weights = Vec<(String, Tensor)>;

/// The purpose of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To find the best settings.
    Sweep {
        /// The worse half of the runs stops at some steps.
        halving: bool,
        /// The adapters of all runs are kept, not that of the best alone.
        keep_all: bool,
    },
    /// To train an adapter for each of some tasks.
    Tasks,
}

impl<D: DataSettings> Several<D> {
    /// Those of these names and settings.
    pub fn new(
        out: PathBuf,
        trees: &[(String, Tree)],
        purpose: Purpose,
        exact: bool,
        ranks: &Ranks,
    ) -> Result<Self> {
        let member = |(name, tree): &(String, Tree)| {
            let run = RunSettings::new(tree, ranks).with_context(|| name.clone())?;
            ensure!(
                !run.common.cuda_graph,
                "'cuda_graph' is for a run alone, and several train in each step of --sweep or 'tasks': leave it out"
            );
            Ok(Member { name: name.clone(), run })
        };
        Ok(Several {
            out,
            members: trees.iter().map(member).collect::<Result<_>>()?,
            purpose,
            exact,
            ranks: ranks.clone(),
        })
    }
}

impl<D> Several<D> {
    /// The processes that train them.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// All that is written into.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        let own = self.members.iter().map(|member| member.run.common.out.as_path());
        std::iter::once(self.out.as_path()).chain(own)
    }

    /// The best of them is sought.
    pub(super) fn compares(&self) -> bool {
        self.purpose != Purpose::Tasks
    }

    pub(super) fn keeps_all(&self) -> bool {
        !matches!(self.purpose, Purpose::Sweep { keep_all: false, .. })
    }
}

/// The number of each thing among those that differ, and the place of the first of each.
pub fn alike<K: PartialEq>(things: impl Iterator<Item = K>) -> (Vec<usize>, Vec<usize>) {
    let (mut known, mut numbers, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
    for (at, thing) in things.enumerate() {
        let number = known.iter().position(|other| *other == thing).unwrap_or(known.len());
        if number == known.len() {
            known.push(thing);
            firsts.push(at);
        }
        numbers.push(number);
    }
    (numbers, firsts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_things_have_one_number() {
        assert_eq!(alike("abacb".chars()), (vec![0, 1, 0, 2, 1], vec![0, 1, 3]));
        assert_eq!(alike(std::iter::empty::<char>()), (vec![], vec![]));
    }
}
