//! Tied tensors: one in memory, under one or several names in a file.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;

/// The copies among `names`, each with its new name, or `None` if it is left out.
///
/// `ties` are pairs of a copy and its original. A copy that equals its original by `same` is left out; one that differs
/// is no copy, whatever the configuration says, and stays, as in transformers 5. If `alone`, a copy without its original
/// takes the original's name.
pub(in crate::pretrained) fn settled(
    ties: &[(String, String)],
    names: &BTreeSet<&str>,
    alone: bool,
    same: impl Fn(&str, &str) -> Result<bool>,
) -> Result<BTreeMap<String, Option<String>>> {
    let mut settled = BTreeMap::new();
    // Originals that another copy has replaced.
    let mut stands_for: BTreeMap<&str, &str> = BTreeMap::new();
    for (copy, original) in ties.iter().filter(|(copy, _)| names.contains(copy.as_str())) {
        let original = original.as_str();
        let here = names.get(original).or(stands_for.get(original)).copied();
        match here {
            Some(here) if same(copy, here)? => {
                settled.insert(copy.clone(), None);
            }
            None if alone => {
                stands_for.insert(original, copy);
                settled.insert(copy.clone(), Some(original.to_owned()));
            }
            _ => {}
        }
    }
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_and_what_differs_stays() {
        let ties = [("head", "words"), ("encoder", "words"), ("decoder", "words")];
        let ties = ties.map(|(copy, original)| (copy.to_owned(), original.to_owned()));
        let of = |names: &[&str], alone: bool, differs: &str| {
            let names = names.iter().copied().collect();
            let same = |a: &str, b: &str| Ok(a != differs && b != differs);
            let found = settled(&ties, &names, alone, same).unwrap();
            found.into_iter().map(|(copy, name)| (copy, name.unwrap_or_default())).collect()
        };
        let list = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(copy, name)| ((*copy).to_owned(), (*name).to_owned())).collect()
        };
        let found: Vec<_> = of(&["words", "head", "decoder", "else"], true, "");
        assert_eq!(found, list(&[("decoder", ""), ("head", "")]));
        let found: Vec<_> = of(&["words", "head", "decoder"], true, "head");
        assert_eq!(found, list(&[("decoder", "")]));
        // The first copy replaces a missing original.
        let found: Vec<_> = of(&["encoder", "decoder"], true, "");
        assert_eq!(found, list(&[("decoder", ""), ("encoder", "words")]));
        let found: Vec<_> = of(&["encoder", "decoder"], true, "decoder");
        assert_eq!(found, list(&[("encoder", "words")]));
        let found: Vec<_> = of(&["encoder", "decoder"], false, "");
        assert_eq!(found, []);
    }
}
