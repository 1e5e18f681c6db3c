//! The runs whose batches go through the model together in a step.

use crate::train::task::Extent;

/// Places with padding for each hundred without: more would cost what going together gains.
const PADDED: u64 = 125;

/// The places of the runs of each group, by the extents of each run's batches: a run of none goes alone. A group has
/// rows of about one length, and `most` places at most. All are in one group.
pub(super) fn groups(runs: &[Vec<Extent>], most: u64) -> Vec<Vec<usize>> {
    let longest = |run: &usize| runs[*run].iter().map(|batch| batch.length).max();
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(longest);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for run in order {
        let fits = groups.iter_mut().find(|group| {
            let all = group.iter().chain([&run]).map(|at| runs[*at].as_slice());
            go_together(&all.collect::<Vec<_>>(), most)
        });
        match fits {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups
}

/// True if these runs gain by it: each has as many batches, which fit each other one by one.
fn go_together(runs: &[&[Extent]], most: u64) -> bool {
    let count = runs[0].len();
    count > 0
        && runs.iter().all(|run| run.len() == count)
        && (0..count).all(|at| fit(&runs.iter().map(|run| run[at]).collect::<Vec<_>>(), most))
}

fn fit(batches: &[Extent], most: u64) -> bool {
    let rows: u64 = batches.iter().map(|batch| batch.rows).sum();
    let longest = batches.iter().map(|batch| batch.length).max().unwrap_or(0);
    let own: u64 = batches.iter().map(|batch| batch.rows * batch.length).sum();
    let places = rows * longest;
    places <= most
        && places * 100 <= own * PADDED
        && batches.iter().all(|batch| batch.like == batches[0].like)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(rows: u64, lengths: &[u64]) -> Vec<Extent> {
        lengths.iter().map(|length| Extent { rows, length: *length, like: 0 }).collect()
    }

    #[test]
    fn runs_go_together_as_long_as_they_are_small_and_alike() {
        let eight = vec![run(1, &[32]); 8];
        assert_eq!(groups(&eight, 512), [(0..8).collect::<Vec<_>>()]);
        assert_eq!(groups(&eight, 128), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        // As many places as the most, in each: alone.
        assert_eq!(groups(&vec![run(16, &[32]); 3], 512), [[0], [1], [2]]);
        // Long rows would be padding for short ones.
        let mixed = [run(1, &[30]), run(2, &[200]), run(1, &[32]), run(1, &[190])];
        assert_eq!(groups(&mixed, 1024), [vec![0, 2], vec![3, 1]]);
        // Other numbers of batches, none, and a rope of another length.
        let other = vec![Extent { rows: 1, length: 32, like: 1 }];
        let mixed = [run(1, &[32]), run(1, &[32, 32]), vec![], other, vec![], run(1, &[32])];
        let mut found = groups(&mixed, 512);
        found.sort();
        assert_eq!(found, [vec![0, 5], vec![1], vec![2], vec![3], vec![4]]);
        assert!(groups(&[], 512).is_empty());
    }

    proptest! {
        #[test]
        fn each_run_is_in_one_group_and_none_holds_too_much(
            runs in proptest::collection::vec(
                proptest::collection::vec((1..40_u64, 1..300_u64, 0..2_i64), 0..3), 0..30),
            most in 1..3000_u64,
        ) {
            let extent = |(rows, length, like): &(u64, u64, i64)| {
                Extent { rows: *rows, length: *length, like: *like }
            };
            let runs: Vec<Vec<Extent>> =
                runs.iter().map(|run| run.iter().map(extent).collect()).collect();
            let groups = groups(&runs, most);
            let mut all = groups.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..runs.len()).collect::<Vec<_>>());
            for group in groups.iter().filter(|group| group.len() > 1) {
                let own: Vec<&[Extent]> = group.iter().map(|at| runs[*at].as_slice()).collect();
                prop_assert!(go_together(&own, most));
            }
        }
    }
}
