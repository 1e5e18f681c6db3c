//! The tree of modules, from the names of variables.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use crate::storage::info::VariableInfo;

/// The tree of modules, from the names of variables.
pub(crate) struct Tree<'a> {
    /// Every path that is a prefix of a name, with the variables directly in it.
    modules: BTreeMap<&'a str, Vec<&'a VariableInfo>>,
}

impl<'a> Tree<'a> {
    pub(crate) fn of(variables: &'a [VariableInfo]) -> Self {
        let mut modules: BTreeMap<&str, Vec<&VariableInfo>> = BTreeMap::new();
        let mut last = "";
        for variable in variables {
            let name = variable.name.as_str();
            // Neighbours share most of their path; the shared part has been added already.
            let shared = name.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
            for (dot, _) in name.match_indices('.').filter(|(dot, _)| *dot >= shared) {
                modules.entry(&name[..dot]).or_default();
            }
            if let Some((module, _)) = name.rsplit_once('.') {
                modules.entry(module).or_default().push(variable);
            }
            last = name;
        }
        Tree { modules }
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.modules.keys().copied()
    }

    pub(crate) fn tensors(&self, path: &str) -> impl Iterator<Item = &'a VariableInfo> + '_ {
        self.modules.get(path).into_iter().flatten().copied()
    }

    pub(crate) fn is_leaf(&self, path: &str) -> bool {
        self.below(path).next().is_none()
    }

    /// The modules below a path, which follow each other in the order of the paths.
    fn below(&self, path: &str) -> impl Iterator<Item = (&'a str, &Vec<&'a VariableInfo>)> + '_ {
        let root = path.to_owned();
        let start = format!("{path}.");
        let from = (Bound::Included(start.as_str()), Bound::Unbounded);
        let modules = self.modules.range::<str, _>(from).map(|(path, tensors)| (*path, tensors));
        modules.take_while(move |(path, _)| below(path, &root))
    }

    /// The modules that directly hold tensors, from `root` downwards.
    pub(crate) fn leaves<'s>(&'s self, root: &'s str) -> impl Iterator<Item = &'a str> + 's {
        let own = self.modules.get_key_value(root).map(|(path, tensors)| (*path, tensors));
        let all = own.into_iter().chain(self.below(root));
        all.filter(|(_, tensors)| !tensors.is_empty()).map(|(path, _)| path)
    }

    /// The modules that can be tuned by themselves, from `root` downwards: those that hold tensors, each with
    /// everything below it.
    pub(crate) fn units<'s>(&'s self, root: &'s str) -> Vec<&'a str> {
        let leaves: Vec<&str> = self.leaves(root).collect();
        let holding: HashSet<&str> = leaves.iter().copied().collect();
        let inside =
            |path: &&str| path.match_indices('.').any(|(at, _)| holding.contains(&path[..at]));
        leaves.into_iter().filter(|path| !inside(path)).collect()
    }

    /// The variables in a module and in all modules below it.
    pub(crate) fn tensors_below<'s>(
        &'s self,
        path: &'s str,
    ) -> impl Iterator<Item = &'a VariableInfo> + 's {
        self.leaves(path).flat_map(|leaf| self.tensors(leaf))
    }

    /// Paths that differ from one of these by a number only, in modules that exist, but hold no tensors.
    ///
    /// In Python there may be a module without parameters, such as the identity in place of ModernBERT's first norm,
    /// which PEFT fails to wrap.
    pub(crate) fn gaps(&self, paths: &BTreeSet<&str>) -> BTreeSet<String> {
        let mut present: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for path in paths {
            let mut start = 0;
            for segment in path.split('.') {
                let (before, after) = (&path[..start], &path[start + segment.len()..]);
                start += segment.len() + 1;
                if is_number(segment) && !after.is_empty() {
                    present.entry((before, after)).or_default().insert(segment);
                }
            }
        }
        let mut numbers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let (mut gaps, mut steps) = (BTreeSet::new(), 0);
        for ((before, after), present) in present {
            let all = numbers.entry(before).or_insert_with(|| self.numbered(before));
            // Names that hold the number themselves (`blocks.7.norm7`) are no blocks alike, and their gaps are many.
            steps += all.len();
            if steps > 16 * self.modules.len() {
                break;
            }
            for number in all.difference(&present) {
                let other = format!("{before}{number}{after}");
                let parent = other.rsplit_once('.').map_or("", |(parent, _)| parent);
                if self.modules.contains_key(parent) && !self.modules.contains_key(other.as_str()) {
                    gaps.insert(other);
                }
            }
        }
        gaps
    }

    /// The numbers that follow `before`, which is empty or ends in a dot.
    pub(crate) fn numbered(&self, before: &str) -> BTreeSet<&'a str> {
        self.modules
            .range::<str, _>((Bound::Included(before), Bound::Unbounded))
            .take_while(|(path, _)| path.starts_with(before))
            .filter_map(|(path, _)| path[before.len()..].split('.').next())
            .filter(|segment| is_number(segment))
            .collect()
    }

    /// True for a LayerNorm or RMSNorm, judged by name and shape.
    pub(crate) fn is_norm(&self, path: &str) -> bool {
        let last = path.rsplit('.').next().unwrap_or(path);
        // A list of norms (`norms.0`) has the name of its parent.
        let last = if is_number(last) { path.rsplit('.').nth(1).unwrap_or(last) } else { last };
        let last = last.to_ascii_lowercase();
        let named = last.contains("norm")
            || last.contains("layrnorm")
            || last.split('_').any(|part| {
                part.strip_prefix("ln").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()))
            });
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for tensor in self.tensors(path) {
            match first_name(&tensor.name[path.len() + 1..]) {
                "weight" if tensor.shape.len() == 1 => weights.push(&tensor.shape),
                "bias" if tensor.shape.len() == 1 => biases.push(&tensor.shape),
                _ => return false,
            }
        }
        let biases_fit = biases.iter().all(|shape| weights.contains(shape));
        named && !weights.is_empty() && biases_fit && self.is_leaf(path)
    }

    /// True for a BatchNorm, judged by its statistics.
    pub(crate) fn is_batch_norm(&self, path: &str) -> bool {
        self.tensors(path).any(|tensor| &tensor.name[path.len() + 1..] == "running_mean")
    }
}

/// The name that a variable would have if it were the first: tch calls the second `weight` of a module `weight__2`,
/// with the number of variables so far.
fn first_name(name: &str) -> &str {
    match name.rsplit_once("__") {
        Some((first, number)) if is_number(number) => first,
        _ => name,
    }
}

/// The modules around a path, the outermost first, and the path itself.
pub(crate) fn around(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(at, _)| &path[..at]).chain([path])
}

fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'))
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|c| c.is_ascii_digit())
}
