//! The batches of a run: the rows that each is made of, and the rank that trains on them.

use super::order::{Random, EPOCHS};

/// Rows of about the same length are sought among so many batches.
const WINDOW: usize = 50;

/// The rows of a batch, by their numbers in the data to train or to evaluate on.
#[derive(Debug, Clone)]
pub struct Job {
    pub eval: bool,
    pub rows: Vec<usize>,
}

/// The order in which rows are trained on, which is the same however many ranks share them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of each row.
    pub lengths: Vec<u32>,
    /// Rows that stand together in the order, of about the same length.
    pub group: usize,
    /// Without one, rows come in the order of the file.
    pub seed: Option<u64>,
    pub share: Share,
}

/// The part of each step that one rank trains on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub ranks: usize,
    /// Rows in a batch of one rank.
    pub batch_size: usize,
    /// Batches of one rank in a step.
    pub accumulation: usize,
}

/// One update of the weights.
#[derive(Debug)]
pub struct Step {
    /// Of all ranks.
    pub rows: usize,
    /// The batches of this rank; there may be none.
    pub own: Vec<Job>,
}

impl Share {
    /// Batches of all ranks in a step.
    fn batches(&self) -> usize {
        self.ranks * self.accumulation
    }

    /// Rows of all ranks in a step.
    pub fn global_batch_size(&self) -> usize {
        self.batches() * self.batch_size
    }
}

impl Plan {
    /// The groups of an epoch, always as many: in order or, with a seed, in a random order with rows of about the same
    /// length together, so that little is padded.
    pub fn groups(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rows: Vec<usize> = (0..self.lengths.len()).collect();
        let groups = |rows: &[usize]| rows.chunks(self.group).map(<[usize]>::to_vec).collect();
        let Some(seed) = self.seed else {
            return groups(&rows);
        };
        let mut random = Random::new(seed, EPOCHS + epoch);
        random.shuffle(&mut rows);
        for window in rows.chunks_mut(self.group.saturating_mul(WINDOW)) {
            window.sort_by_key(|row| self.lengths[*row]);
        }
        let mut groups: Vec<Vec<usize>> = groups(&rows);
        random.shuffle(&mut groups);
        groups
    }

    /// The steps of an epoch that are left when `done` of its rows have been trained on. A step consists of whole
    /// groups, if as many rows as it has are a multiple of them.
    pub fn steps(&self, epoch: u64, mut done: usize) -> Vec<Step> {
        let mut groups = self.groups(epoch);
        for group in &mut groups {
            let gone = done.min(group.len());
            group.drain(..gone);
            done -= gone;
        }
        groups.retain(|group| !group.is_empty());
        let size = self.share.global_batch_size();
        if !size.is_multiple_of(self.group) {
            let rows = groups.concat();
            return rows.chunks(size).map(|rows| self.step(&[rows.to_vec()])).collect();
        }
        groups.chunks(size / self.group).map(|groups| self.step(groups)).collect()
    }

    fn step(&self, groups: &[Vec<usize>]) -> Step {
        let Share { rank, ranks, batch_size, .. } = self.share;
        let rows: usize = groups.iter().map(Vec::len).sum();
        let whole = self.share.global_batch_size().is_multiple_of(self.group)
            && self.group.is_multiple_of(batch_size);
        let batches: Vec<Vec<usize>> = if whole {
            let parts = self.group / batch_size;
            groups.iter().flat_map(|group| spread(group, parts, ranks)).collect()
        } else {
            spread(&groups.concat(), self.share.batches(), ranks)
        };
        let own = batches.into_iter().skip(rank).step_by(ranks).filter(|rows| !rows.is_empty());
        Step { rows, own: own.map(|rows| Job { eval: false, rows }).collect() }
    }

    /// Steps in a whole epoch.
    pub fn per_epoch(&self) -> u64 {
        self.steps(0, 0).len() as u64
    }
}

/// Makes `parts` batches of rows, as large as each other but for a row or two. Those that the ranks take at the same time
/// have rows that stand together, which are of about the same length.
fn spread(rows: &[usize], parts: usize, ranks: usize) -> Vec<Vec<usize>> {
    if !parts.is_multiple_of(ranks) {
        return dealt(rows, parts);
    }
    let turns = parts / ranks;
    let bounds = |turn: usize| rows.len() * turn / turns;
    (0..turns).flat_map(|turn| dealt(&rows[bounds(turn)..bounds(turn + 1)], ranks)).collect()
}

/// Deals rows out to `parts` that are as large as each other, or differ by one row.
fn dealt(rows: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let part = |part| rows.iter().copied().skip(part).step_by(parts).collect();
    (0..parts).map(part).collect()
}

/// The batches of an evaluation on `count` rows.
pub fn evaluation(count: usize, size: usize) -> Vec<Job> {
    let rows: Vec<usize> = (0..count).collect();
    rows.chunks(size).map(|rows| Job { eval: true, rows: rows.to_vec() }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(rows: usize, group: usize, seed: Option<u64>, share: Share) -> Plan {
        let lengths = (0..rows as u32).map(|row| row * 7919 % 61).collect();
        Plan { lengths, group, seed, share }
    }

    fn share(rank: usize, ranks: usize, batch_size: usize, accumulation: usize) -> Share {
        Share { rank, ranks, batch_size, accumulation }
    }

    /// The rows of all ranks' batches in each step.
    fn trained(plan: &Plan, epoch: u64, done: usize) -> Vec<Vec<usize>> {
        let ranks = 0..plan.share.ranks;
        let plans = ranks.map(|rank| {
            let share = Share { rank, ..plan.share };
            Plan { share, ..plan.clone() }.steps(epoch, done)
        });
        let mut steps = Vec::new();
        for of_rank in plans {
            steps.resize_with(of_rank.len(), Vec::new);
            for (all, step) in steps.iter_mut().zip(of_rank) {
                assert!(step.own.len() <= plan.share.accumulation);
                for job in step.own {
                    assert!(!job.rows.is_empty() && job.rows.len() <= plan.share.batch_size);
                    all.extend(job.rows);
                }
            }
        }
        steps
    }

    proptest! {
        #[test]
        fn every_row_is_trained_on_once_in_an_epoch_by_one_rank(
            rows in 1..200_usize, group in 1..20_usize, seed in proptest::option::of(0..9_u64),
            ranks in 1..6_usize, batch_size in 1..9_usize, accumulation in 1..5_usize,
            done in 0..200_usize,
        ) {
            let plan = plan(rows, group, seed, share(0, ranks, batch_size, accumulation));
            let (all, done) = (plan.groups(3).concat(), done.min(rows));
            let mut left = trained(&plan, 3, done).concat();
            let mut expected = all[done..].to_vec();
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
            let mut every = all;
            every.sort_unstable();
            prop_assert_eq!(every, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn steps_have_the_same_rows_however_many_ranks_share_them(
            rows in 1..200_usize, seed in 0..9_u64, parts in 1..5_usize, turns in 1..4_usize,
            size in 1..4_usize,
        ) {
            // As one batch of one rank, or as batches of every kind.
            let global = 12 * size;
            for group in [global, global / 2, global / 12] {
                let one = plan(rows, group, Some(seed), share(0, 1, global, 1));
                let one = trained(&one, 1, 0);
                let ranks = [1, 2, 3, 4, 6][parts];
                let accumulation = if (12 / ranks) % turns == 0 { turns } else { 1 };
                let batch_size = global / ranks / accumulation;
                let many = plan(rows, group, Some(seed), share(0, ranks, batch_size, accumulation));
                let many = trained(&many, 1, 0);
                prop_assert_eq!(one.len(), many.len());
                for (mut one, mut many) in one.into_iter().zip(many) {
                    one.sort_unstable();
                    many.sort_unstable();
                    prop_assert_eq!(one, many);
                }
            }
        }
    }

    #[test]
    fn one_rank_trains_on_the_groups_as_they_are() {
        let plan = plan(43, 4, Some(5), share(0, 1, 4, 3));
        let own: Vec<Vec<usize>> =
            plan.steps(2, 0).into_iter().flat_map(|step| step.own).map(|job| job.rows).collect();
        assert_eq!(own, plan.groups(2));
        assert_eq!(plan.per_epoch(), 4);
    }

    #[test]
    fn the_order_of_an_epoch_is_that_of_former_versions() {
        let plan = plan(11, 3, Some(7), share(0, 1, 3, 1));
        assert_eq!(plan.groups(1), ORDER);
    }

    /// The batches that the version before ranks gave for these rows.
    const ORDER: [&[usize]; 4] = [&[8, 2, 7], &[0, 5, 10], &[1, 6], &[4, 9, 3]];

    #[test]
    fn the_last_rows_are_spread_over_the_ranks_and_some_may_have_none() {
        // One group for all ranks.
        let shares = |ranks, rows| {
            let steps = (0..ranks).map(|rank| {
                let last = plan(rows, 4 * ranks, None, share(rank, ranks, 4, 1)).steps(0, 0);
                last.last().map_or(0, |step| step.own.iter().map(|job| job.rows.len()).sum())
            });
            steps.collect::<Vec<usize>>()
        };
        assert_eq!(shares(3, 12 + 7), [3, 2, 2]);
        assert_eq!(shares(4, 2), [1, 1, 0, 0]);
    }
}
