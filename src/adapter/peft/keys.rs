//! The keys of an adapter file, and the selected tensors that they belong to.

use std::collections::HashMap;

use crate::adapter::selection::{Role, SelectedTensor};
use crate::error::{refuse, Result};
use crate::names::substitution::Substitution;

const PREFIX: &str = "base_model.model.";
const MARK: &str = "ln_tuning_layers";
const SAVED_MARK: &str = "modules_to_save";

/// A key without the prefix of PEFT.
pub(crate) fn unprefixed(key: &str) -> &str {
    key.strip_prefix(PREFIX).unwrap_or(key)
}

/// The key of a tensor that is no module's copy.
pub(crate) fn prefixed(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The name of the base's variable that a key without a mark is; PEFT puts its tensor into the base.
pub(crate) fn carried(key: &str, mapping: &KeyMapping) -> Result<Option<String>> {
    let name = mapping.apply(unprefixed(key))?;
    let marked = [MARK, SAVED_MARK].iter().any(|mark| name.contains(&format!(".{mark}.")));
    Ok((!marked).then_some(name))
}

/// The name of the variable that a key of PEFT means; `None` for a copy of the base's.
pub(crate) fn variable_of(key: &str) -> Option<String> {
    let key = unprefixed(key);
    if key.contains(".base_layer.") || key.contains(".original_module.") {
        return None;
    }
    for mark in [MARK, SAVED_MARK] {
        if let Some((module, rest)) = key.rsplit_once(&format!(".{mark}.")) {
            return Some(format!("{module}.{}", rest.strip_prefix("default.").unwrap_or(rest)));
        }
    }
    Some(key.to_owned())
}

/// The assignment of a file's keys to the wanted tensors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Matched {
    /// The index of the key of each wanted tensor.
    pub(crate) found: Vec<Option<usize>>,
    /// The wanted tensors without a key, by the key that PEFT writes today.
    pub(crate) missing: Vec<String>,
    /// Keys that belong to no wanted tensor.
    pub(crate) unexpected: Vec<String>,
    /// Keys of other adapters, and of copies of base weights.
    pub(crate) foreign: Vec<String>,
}

/// Rules that rename keys: a regular expression and its replacement, in Python's syntax. The first rule that matches is
/// applied wherever it does, to the key without `base_model.model.`.
#[derive(Debug, Default)]
pub(crate) struct KeyMapping(Vec<Substitution>);

impl KeyMapping {
    pub(crate) fn new<S: AsRef<str>>(rules: &[(S, S)]) -> Result<Self> {
        let rule = |(pattern, replacement): &(S, S)| {
            Substitution::new(pattern.as_ref(), replacement.as_ref(), "key_mapping")
        };
        Ok(KeyMapping(rules.iter().map(rule).collect::<Result<_>>()?))
    }

    pub(crate) fn apply(&self, key: &str) -> Result<String> {
        for rule in &self.0 {
            if let Some(renamed) = rule.apply(key)? {
                return Ok(renamed);
            }
        }
        Ok(key.to_owned())
    }
}

/// Renames keys, which keep the prefix of PEFT.
pub(crate) fn rename<'a>(
    keys: impl IntoIterator<Item = &'a mut String>,
    mapping: &[(String, String)],
) -> Result<()> {
    let mapping = KeyMapping::new(mapping)?;
    for key in keys {
        let (prefix, rest) = match key.strip_prefix(PREFIX) {
            Some(rest) => (PREFIX, rest),
            None => ("", key.as_str()),
        };
        *key = format!("{prefix}{}", mapping.apply(rest)?);
    }
    Ok(())
}

/// The key under which PEFT writes a tensor.
///
/// For a tensor in a container (`up.weight` in a block) PEFT writes the adapter's name too, and finds it again under
/// that name only: `default`, unless the user chose another.
pub(crate) fn file_key(tensor: &SelectedTensor) -> String {
    format!("{PREFIX}{}", key_of(tensor, "default"))
}

/// The same without the prefix, for an adapter of this name.
fn key_of(tensor: &SelectedTensor, adapter: &str) -> String {
    let SelectedTensor { module, name, role } = tensor;
    match role {
        Role::Whole => format!("{module}.{name}"),
        Role::Tuned if name.contains('.') => format!("{module}.{MARK}.{adapter}.{name}"),
        Role::Tuned => format!("{module}.{MARK}.{name}"),
    }
}

/// Finds every wanted tensor among the keys of a file of any PEFT version, for the adapter `adapter`.
///
/// Accepts keys with and without `base_model.model.`, keys with an adapter's name, as for containers
/// (`mlp.ln_tuning_layers.default.gate_proj.weight`), and several adapters in one file, as PEFT 0.19 wrote them.
pub(crate) fn match_keys(
    wanted: &[&SelectedTensor],
    keys: &[&str],
    adapter: &str,
    mapping: &KeyMapping,
) -> Result<Matched> {
    let places = wanted.iter().enumerate();
    let places: HashMap<Reading, usize> =
        places.map(|(index, want)| ((want.variable(), want.role), index)).collect();
    // A path may look like another one with a mark or an adapter's name in it: what is written today has one meaning.
    let mut written: HashMap<String, (usize, usize)> = HashMap::new();
    for (rank, adapter) in ["default", adapter].into_iter().enumerate() {
        for (place, want) in wanted.iter().enumerate() {
            written.entry(key_of(want, adapter)).or_insert((rank, place));
        }
    }
    let mut matched = Matched { found: vec![None; wanted.len()], ..Matched::default() };
    // The rank of the reading that found a tensor: 0 is what PEFT writes today; the lowest wins.
    let mut ranks = vec![usize::MAX; wanted.len()];
    for (index, key) in keys.iter().enumerate() {
        let renamed = mapping.apply(unprefixed(key))?;
        let mut readings = readings(&renamed, adapter).into_iter().enumerate();
        let place = written.get(&renamed).copied();
        let place = place.or_else(|| {
            readings.find_map(|(rank, reading)| Some((2 + rank, *places.get(&reading)?)))
        });
        match place {
            Some((rank, place)) => match matched.found[place] {
                Some(first) if rank == ranks[place] => {
                    refuse!(
                        DuplicateKey,
                        "'{}' and '{key}' are both keys of '{renamed}': remove one of them",
                        keys[first]
                    );
                }
                Some(_) if rank > ranks[place] => matched.foreign.push((*key).to_owned()),
                former => {
                    matched.foreign.extend(former.map(|former| keys[former].to_owned()));
                    (matched.found[place], ranks[place]) = (Some(index), rank);
                }
            },
            None if is_foreign(&renamed, &places) => matched.foreign.push((*key).to_owned()),
            None => matched.unexpected.push((*key).to_owned()),
        }
    }
    for (want, found) in wanted.iter().zip(&matched.found) {
        if found.is_none() {
            matched.missing.push(file_key(want));
        }
    }
    Ok(matched)
}

/// A possible meaning of a key: the name of a variable, and the role of its module.
type Reading = (String, Role);

fn readings(key: &str, adapter: &str) -> Vec<Reading> {
    let mut readings = Vec::new();
    for (mark, role) in [(MARK, Role::Tuned), (SAVED_MARK, Role::Whole)] {
        // A module's path may contain the mark too: every occurrence is tried, the last one first.
        let mark = format!(".{mark}.");
        for (at, _) in key.rmatch_indices(&mark) {
            let (module, rest) = (&key[..at], &key[at + mark.len()..]);
            readings.push((format!("{module}.{rest}"), role));
            // Containers keep the name under which the adapter was saved: ours or `default`.
            for name in [adapter, "default"] {
                if let Some(rest) = rest.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'))
                {
                    readings.push((format!("{module}.{rest}"), role));
                }
            }
        }
    }
    readings.push((key.to_owned(), Role::Whole));
    readings
}

/// Another adapter's tensor (`norm.ln_tuning_layers.other.weight`), or a base weight that PEFT saved along.
fn is_foreign(key: &str, places: &HashMap<Reading, usize>) -> bool {
    let mark = format!(".{MARK}.");
    if let Some(at) = key.rfind(&mark) {
        let (module, rest) = (&key[..at], &key[at + mark.len()..]);
        return rest.split_once('.').is_some_and(|(_, tensor)| {
            !tensor.contains('.')
                || places.contains_key(&(format!("{module}.{tensor}"), Role::Tuned))
        });
    }
    key.contains(".base_layer.") || key.contains(".original_module.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn wanted() -> [SelectedTensor; 4] {
        [
            ("enc.b.norm", "weight", Role::Tuned),
            ("enc.b.norm", "bias", Role::Tuned),
            ("mlp", "up.weight", Role::Tuned),
            ("head", "weight", Role::Whole),
        ]
        .map(|(module, name, role)| SelectedTensor {
            module: module.into(),
            name: name.into(),
            role,
        })
    }

    fn matched(keys: &[&str], adapter: &str, mapping: &KeyMapping) -> Result<Matched> {
        match_keys(&wanted().each_ref(), keys, adapter, mapping)
    }

    fn found(keys: &[&str], adapter: &str) -> Matched {
        matched(keys, adapter, &KeyMapping::default()).unwrap()
    }

    #[test]
    fn what_is_written_is_found() {
        let keys = wanted().map(|tensor| file_key(&tensor));
        let keys = keys.each_ref().map(String::as_str);
        for adapter in ["default", "b", "enc", "weight", "norm", "efaul", "default2"] {
            let matched = found(&keys, adapter);
            assert_eq!(matched.found, [Some(0), Some(1), Some(2), Some(3)]);
            assert!(matched.unexpected.is_empty() && matched.foreign.is_empty());
        }
    }

    #[test]
    fn older_spellings_are_found() {
        let keys = [
            "enc.b.norm.ln_tuning_layers.default.weight",
            "base_model.model.enc.b.norm.ln_tuning_layers.bias",
            "base_model.model.mlp.ln_tuning_layers.default.up.weight",
            "base_model.model.head.modules_to_save.default.weight",
        ];
        assert_eq!(found(&keys, "mine").found, [Some(0), Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn other_adapters_and_base_copies_are_foreign_and_the_rest_unexpected() {
        let keys = [
            "base_model.model.enc.b.norm.ln_tuning_layers.other.weight",
            "base_model.model.embed_tokens.base_layer.weight",
            "base_model.model.nowhere.ln_tuning_layers.weight",
        ];
        let matched = found(&keys, "default");
        assert_eq!(matched.foreign, &keys[..2]);
        assert_eq!(matched.unexpected, &keys[2..]);
        assert_eq!(matched.missing.len(), 4);
    }

    #[test]
    fn a_leaked_adapter_of_our_name_does_not_take_the_place_of_the_saved_one() {
        for order in [[0, 1], [1, 0]] {
            let keys =
                ["enc.b.norm.ln_tuning_layers.weight", "enc.b.norm.ln_tuning_layers.other.weight"];
            let keys = order.map(|i: usize| keys[i]);
            let matched = found(&keys, "other");
            assert_eq!(
                matched.found[0].map(|i| keys[i]),
                Some("enc.b.norm.ln_tuning_layers.weight")
            );
            assert_eq!(matched.foreign, ["enc.b.norm.ln_tuning_layers.other.weight"]);
        }
    }

    /// Every choice of paths that could be taken for another with a mark or a name in it.
    #[test]
    fn a_key_that_was_written_is_read_as_what_it_was() {
        let marks = ["q", "default", "mine", "ln_tuning_layers", "modules_to_save"];
        let mut paths = marks.map(str::to_owned).to_vec();
        for above in marks {
            paths.extend(marks.map(|below| format!("{above}.{below}")));
            paths.extend(marks.map(|below| format!("{above}.default.{below}")));
        }
        for role in [Role::Tuned, Role::Whole] {
            // Containers, then modules.
            for in_one in [true, false] {
                let tensor = |path: &String| match in_one {
                    true => ("c".to_owned(), format!("{path}.weight")),
                    false => (format!("c.{path}"), "weight".to_owned()),
                };
                let wanted: Vec<SelectedTensor> = paths
                    .iter()
                    .map(tensor)
                    .map(|(module, name)| SelectedTensor { module, name, role })
                    .collect();
                for save_as in ["default", "mine"] {
                    let keys: Vec<String> = wanted.iter().map(|w| key_of(w, save_as)).collect();
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    let wanted: Vec<&SelectedTensor> = wanted.iter().collect();
                    for read_as in ["mine", "q", "default"] {
                        if save_as == "mine" && read_as != "mine" {
                            continue; // Only this name tells what it is.
                        }
                        let matched =
                            match_keys(&wanted, &keys, read_as, &KeyMapping::default()).unwrap();
                        let found: Vec<_> = (0..keys.len()).map(Some).collect();
                        assert_eq!(matched.found, found, "{role:?} {in_one} {save_as} {read_as}");
                    }
                }
            }
        }
    }

    #[test]
    fn two_keys_for_one_tensor_are_an_error() {
        let keys = ["head.weight", "base_model.model.head.weight"]; // with and without the prefix
        let error = matched(&keys, "default", &KeyMapping::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DuplicateKey);
    }

    #[test]
    fn the_first_rule_of_a_key_mapping_that_matches_is_applied() {
        let mapping =
            KeyMapping::new(&[(r"^old\.(.*)", r"enc.b.\1"), ("^old", "nowhere")]).unwrap();
        let keys = ["base_model.model.old.norm.ln_tuning_layers.weight"];
        assert_eq!(matched(&keys, "default", &mapping).unwrap().found[0], Some(0));
    }
}
