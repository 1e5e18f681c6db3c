//! The tree of modules, from the names of variables.

use std::collections::{BTreeMap, BTreeSet};
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
        let from = (Bound::Excluded(path), Bound::Unbounded);
        !self
            .modules
            .range::<str, _>(from)
            .take_while(|(p, _)| p.starts_with(path))
            .any(|(p, _)| below(p, path))
    }

    /// The modules that directly hold tensors, from `root` downwards.
    pub(crate) fn leaves<'s>(&'s self, root: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.modules
            .range::<str, _>((Bound::Included(root), Bound::Unbounded))
            .take_while(move |(path, _)| path.starts_with(root))
            .filter(move |(path, tensors)| {
                !tensors.is_empty() && (**path == root || below(path, root))
            })
            .map(|(path, _)| *path)
    }

    /// The modules that can be tuned by themselves, from `root` downwards: those that hold tensors, each with
    /// everything below it.
    pub(crate) fn units<'s>(&'s self, root: &'s str) -> Vec<&'a str> {
        let mut units: Vec<&str> = Vec::new();
        for path in self.leaves(root) {
            if !units.iter().any(|unit| below(path, unit)) {
                units.push(path);
            }
        }
        units
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
        let mut gaps = BTreeSet::new();
        for ((before, after), present) in present {
            let all = numbers.entry(before).or_insert_with(|| self.numbered(before));
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
    fn numbered(&self, before: &str) -> BTreeSet<&'a str> {
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
        let mut weight = None;
        for tensor in self.tensors(path) {
            match &tensor.name[path.len() + 1..] {
                "weight" if tensor.shape.len() == 1 => weight = Some(&tensor.shape),
                "bias" if tensor.shape.len() == 1 => {}
                _ => return false,
            }
        }
        let bias_fits = self.tensors(path).all(|tensor| Some(&tensor.shape) == weight);
        named && weight.is_some() && bias_fits && self.is_leaf(path)
    }
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|c| c.is_ascii_digit())
}

/// True for a path inside the module `root`.
pub(crate) fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'))
}
