//! The settings with which PEFT selects the same modules.

use std::collections::{BTreeSet, HashSet};

use super::rules::{Rules, Verdict};
use super::selected::{Role, SelectedModule};
use super::tree::{around, Tree};
use crate::adapter::config::{LnTuningConfig, Modules};
use crate::error::Result;

/// Names for `modules_to_save` that PEFT can load again: it fails where a module and one in it are both named.
pub(super) fn separable(tree: &Tree, names: Vec<String>) -> Vec<String> {
    let ending = |names: &[String]| -> Vec<&str> {
        tree.paths().filter(|path| names.iter().any(|name| path.ends_with(name.as_str()))).collect()
    };
    let saved = ending(&names);
    let all: HashSet<&str> = saved.iter().copied().collect();
    let is_inner = |path: &&str| around(path).any(|outer| outer != *path && all.contains(outer));
    if !saved.iter().any(is_inner) {
        return names;
    }
    let roots: Vec<&str> = saved.iter().copied().filter(|path| !is_inner(path)).collect();
    let inner_only = |name: &String| {
        let mut found = saved.iter().filter(|path| path.ends_with(name.as_str())).peekable();
        found.peek().is_some() && found.all(is_inner)
    };
    let fewer: Vec<String> = names.iter().filter(|name| !inner_only(name)).cloned().collect();
    let paths: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
    [fewer, paths].into_iter().find(|names| ending(names) == roots).unwrap_or(names)
}

/// The settings with which PEFT selects the same leaf modules: the user's, or names derived from the result.
pub(super) fn exportable(
    tree: &Tree,
    modules: &[SelectedModule],
    config: &LnTuningConfig,
    targets: Modules,
    named: bool,
    excludes: Option<Modules>,
) -> Result<(Modules, Option<Modules>)> {
    let tuned: BTreeSet<&str> =
        modules.iter().filter(|m| m.role == Role::Tuned).map(|m| m.path.as_str()).collect();
    let gaps = tree.gaps(&tuned);
    let selects = |targets: &Modules, excludes: Option<&Modules>| -> Result<bool> {
        let rules = Rules::new(targets, excludes, config.modules_to_save.as_deref())?;
        let mut found = BTreeSet::new();
        for path in tree.paths() {
            if rules.verdict(path)? == Verdict::Targeted {
                found.insert(path);
            }
        }
        for path in &gaps {
            if rules.verdict(path)? == Verdict::Targeted {
                return Ok(false);
            }
        }
        Ok(found == tuned)
    };
    if named && selects(&targets, excludes.as_ref())? {
        return Ok((targets, excludes));
    }
    // The name below the last number, which all blocks share; a bare name may match a module without tensors elsewhere.
    let tail = |path: &&str| {
        let numbered = |segment: &&str| segment.chars().all(|c| c.is_ascii_digit());
        let behind = path.split('.').rev().take_while(|segment| !numbered(segment));
        let behind: Vec<&str> = behind.collect();
        behind.into_iter().rev().collect::<Vec<_>>().join(".")
    };
    let tails: BTreeSet<String> = tuned.iter().map(tail).filter(|tail| !tail.is_empty()).collect();
    let tails = Modules::list(tails);
    for excludes in [None, excludes.as_ref()] {
        if selects(&tails, excludes)? {
            return Ok((tails, excludes.cloned()));
        }
    }
    let paths = Modules::list(tuned.iter().copied());
    if selects(&paths, None)? {
        return Ok((paths, None));
    }
    // A path that is the end of another one needs a pattern for the whole path.
    let escaped: Vec<String> = tuned.iter().map(|path| regex::escape(path)).collect();
    Ok((Modules::Pattern(escaped.join("|")), None))
}
