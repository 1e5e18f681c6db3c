//! The position from which several runs go on: rank 0 finds it, and all ranks have it.

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use super::members::Several;
use super::record::Record;
use crate::train::batches::Plan;
use crate::train::begun::Begun;
use crate::train::checkpoint;
use crate::train::settings::{Resume, Settings};

/// The state of all runs.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Common {
    pub record: Record,
    /// The step from which all go on; one that has fewer steps is then at its end.
    pub step: u64,
    /// That of the newest checkpoint of any.
    newest: u64,
    /// In the order of the runs.
    pub runs: Vec<Begun>,
}

impl Common {
    /// The state on all ranks, of runs with these plans, numbers of steps and digests of data.
    pub fn find<D>(
        several: &Several<D>,
        (names, folders): (&[String], &[String]),
        plans: &mut [Plan],
        totals: &[u64],
        digests: &[String],
    ) -> Result<Self> {
        let ranks = several.ranks();
        let find = || Self::of_first(several, (names, folders), plans, totals, digests);
        let found = ranks.agree(ranks.is_first().then(find).transpose())?;
        if let (Some(found), true) = (&found, ranks.are_one()) {
            return Ok(found.clone());
        }
        let bytes = found.map(|found| serde_json::to_vec(&found)).transpose()?;
        let common: Common = serde_json::from_slice(&ranks.bytes(bytes.unwrap_or_default())?)?;
        let members = several.members.iter().zip(&common.runs).zip(digests);
        let mut fit = members.map(|((member, begun), digest)| {
            begun
                .check(&member.run.all, digest, &member.run.common, common.newest)
                .with_context(|| member.name.clone())
        });
        let fit = if common.runs.len() == several.members.len() {
            fit.try_for_each(|fits| fits)
        } else {
            Err(anyhow::anyhow!(
                "this rank has {} runs, and rank 0 {}: give all ranks the same",
                several.members.len(),
                common.runs.len()
            ))
        };
        ranks.agree(fit)?;
        plans.iter_mut().zip(&common.runs).for_each(|(plan, begun)| plan.group = begun.state.group);
        Ok(common)
    }

    fn of_first<D>(
        several: &Several<D>,
        (names, folders): (&[String], &[String]),
        plans: &mut [Plan],
        totals: &[u64],
        digests: &[String],
    ) -> Result<Self> {
        let members = &several.members;
        let recorded = several.out.join(checkpoint::RUNS).exists();
        let mut record = Record::open(&several.out, names, folders)?;
        let positions =
            members.iter().zip(&record.runs).zip(totals).map(|((member, run), total)| {
                let stopped = run.stopped.as_ref().map(|stopped| stopped.step);
                let saved = checkpoint::steps(&member.run.common.out)?;
                Ok(Position { saved, stopped, total: *total })
            });
        let positions = positions.collect::<Result<Vec<_>>>()?;
        let step = common(&positions);
        check_held(several, &positions, step, recorded)?;
        record.back_to(step);
        let newest = positions.iter().filter_map(|run| run.saved.last()).copied().max();
        let mut runs = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate() {
            let own = Some(step.min(totals[at])).filter(|step| *step > 0);
            let own = own.filter(|_| record.runs[at].stopped.is_none());
            let run = &member.run;
            let found =
                Begun::find(own, &run.common, &run.all, digests[at].clone(), &mut plans[at]);
            let found = found.with_context(|| member.name.clone())?;
            runs.push(found);
        }
        Ok(Common { record, step, newest: newest.unwrap_or(0), runs })
    }
}

/// Refuses checkpoints that nobody would go on from, and that a new beginning would remove.
fn check_held<D>(
    several: &Several<D>,
    positions: &[Position],
    step: u64,
    recorded: bool,
) -> Result<()> {
    let mut held = several.members.iter().zip(positions);
    let Some((member, _)) = held.find(|(_, position)| !position.saved.is_empty()) else {
        return Ok(());
    };
    let Settings { out, resume, .. } = &member.run.common;
    ensure!(
        *resume != Resume::Never,
        "'{}' holds checkpoints of a run, and 'resume' is never: choose another 'out', or set 'resume' to auto",
        out.display()
    );
    ensure!(
        recorded || step > 0,
        "'{}' holds checkpoints, and there is no '{}' that says that they are of these runs: choose another 'out', or \
         remove them",
        out.display(),
        several.out.join(checkpoint::RUNS).display()
    );
    Ok(())
}

/// The place of a run on disk.
struct Position {
    /// The steps of its checkpoints.
    saved: Vec<u64>,
    /// The step at which it stopped for good.
    stopped: Option<u64>,
    /// Its last step.
    total: u64,
}

/// The newest step from which all runs can go on. One that has fewer steps is then at its end.
fn common(runs: &[Position]) -> u64 {
    let mut steps: Vec<u64> = runs.iter().flat_map(|run| &run.saved).copied().collect();
    steps.sort_unstable();
    let has = |run: &Position, step: u64| {
        run.stopped.is_some_and(|stopped| stopped <= step)
            || run.saved.contains(&step.min(run.total))
    };
    steps.into_iter().rev().find(|step| runs.iter().all(|run| has(run, *step))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_on_from_the_newest_step_that_all_have() {
        let run =
            |saved: &[u64], stopped, total| Position { saved: saved.to_vec(), stopped, total };
        let on = |saved: &[u64]| run(saved, None, 100);
        assert_eq!(common(&[on(&[5, 10]), on(&[5, 10])]), 10);
        // Killed while the second one saved.
        assert_eq!(common(&[on(&[5, 10]), on(&[5])]), 5);
        assert_eq!(common(&[on(&[5, 10]), on(&[])]), 0);
        // One that has ended, or stopped for good, waits for nobody.
        assert_eq!(common(&[on(&[10, 20]), run(&[8, 12], None, 12)]), 20);
        assert_eq!(common(&[on(&[10, 20]), run(&[5], Some(7), 100)]), 20);
        assert_eq!(common(&[on(&[5]), run(&[5], Some(7), 100)]), 5);
        assert_eq!(common(&[]), 0);
    }
}
