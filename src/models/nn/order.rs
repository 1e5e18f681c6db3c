//! The order in which parts of a model are entered, as far as it can be known ahead.

use std::collections::HashMap;

/// Parts come one after the other, in the forward pass and back. After the same two parts, that comes next which came
/// the last time: so a step turns round at the last part, and generation begins again with the first.
#[derive(Debug, Default)]
pub(super) struct Order {
    parts: usize,
    /// The present part, and the one before.
    at: Option<usize>,
    before: Option<usize>,
    followed: HashMap<(Option<usize>, usize), usize>,
}

impl Order {
    pub(super) fn of(parts: usize) -> Self {
        Order { parts, ..Order::default() }
    }

    /// The part that comes next, if any does; `None` if this part is the present one.
    pub(super) fn enter(&mut self, part: usize) -> Option<Option<usize>> {
        if self.at == Some(part) {
            return None;
        }
        let left = self.at.replace(part);
        if let Some(left) = left {
            self.followed.insert((self.before, left), part);
        }
        self.before = left;
        let backward = left == Some(part + 1);
        let next = match self.followed.get(&(left, part)) {
            Some(next) => *next,
            None if backward => part.wrapping_sub(1),
            None => part + 1,
        };
        // At the end the pass turns round.
        Some(Some(next).filter(|next| *next < self.parts).or(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_part_is_known_in_a_step_and_after_the_first_token_in_generation() {
        let turns = |order: &mut Order, parts: &[usize]| -> Vec<Option<usize>> {
            parts.iter().filter_map(|part| order.enter(*part)).collect()
        };
        let mut order = Order::of(4);
        for _step in 0..2 {
            // Several batches enter a part several times.
            let found = turns(&mut order, &[0, 0, 1, 1, 2, 3, 3, 2, 2, 1, 0, 0]);
            let found = found.into_iter().map(Option::unwrap).collect::<Vec<_>>();
            // The first part is entered once more by the next step, and is there.
            let expected: &[usize] = &[1, 2, 3, 2, 1, 0, 1];
            assert!(found == expected || found == expected[1..], "{found:?}");
        }
        let mut order = Order::of(3);
        let token = [0, 1, 2];
        assert_eq!(turns(&mut order, &token), [Some(1), Some(2), Some(1)]);
        assert_eq!(turns(&mut order, &token), [Some(1), Some(2), Some(0)]);
        assert_eq!(turns(&mut order, &token), [Some(1), Some(2), Some(0)]);
        assert_eq!(turns(&mut Order::of(1), &[0, 0, 0]), [None]);
    }
}
