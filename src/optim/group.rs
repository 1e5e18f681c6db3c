//! A parameter group: tensors that share settings.

use std::collections::BTreeMap;

use super::algorithm::{check_range, Algorithm};
use crate::adapter::NormPlace;
use crate::error::Result;

/// The number of a parameter group (`Path::set_group` of tch), and the place of its norms.
pub(super) type Key = (usize, Option<NormPlace>);

/// The settings of tensors that share them.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) algorithm: Algorithm,
    pub(super) lr: f64,
}

impl Group {
    /// True if both update in the same way, as all groups do at first.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.lr == other.lr && self.algorithm.is_same(&other.algorithm)
    }
}

pub(super) fn check_lr(lr: f64) -> Result<()> {
    check_range("the learning rate", lr, 0.0..f64::INFINITY, "finite and not negative")
}

/// The settings of each slot: the number of its group, where groups with equal settings are one, its algorithm and its
/// rate.
pub(super) fn settings<'o>(
    groups: &'o BTreeMap<Key, Group>,
    slot_groups: &'o [Key],
) -> impl Fn(usize) -> (usize, Algorithm, f64) + 'o {
    let groups: Vec<(Key, &Group)> = groups.iter().map(|(key, group)| (*key, group)).collect();
    let first = |of: &Group| groups.iter().position(|(_, group)| group.is_same(of));
    let firsts: BTreeMap<Key, usize> =
        groups.iter().filter_map(|(key, group)| Some((*key, first(group)?))).collect();
    move |slot| {
        let at = firsts[&slot_groups[slot]];
        (at, groups[at].1.algorithm, groups[at].1.lr)
    }
}
