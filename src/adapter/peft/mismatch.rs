//! The words about an adapter whose keys are not those of the model.

use super::keys::{match_keys, KeyMapping, Matched};
use crate::adapter::selection::SelectedTensor;
use crate::error::{refuse, Result};
use crate::names::nearest::listed;
use crate::names::wrappers::wrappers_in;

/// Refuses missing and unexpected keys, each unless allowed. `place` is where the adapter was to go.
pub(crate) fn check(
    matched: &Matched,
    wanted: &[&SelectedTensor],
    keys: &[&str],
    place: &str,
    (allow_missing, allow_unexpected): (bool, bool),
) -> Result<()> {
    const OTHER: &str = "Was it made for another model? Rename keys with `LoadOptions::key_mapping`, in the program \
                         with `--key-mapping`";
    let cure = || {
        match unwrapped(matched, wanted, keys) {
        Some((wrappers, pattern)) => format!(
            "Its keys hold the names of wrappers ({wrappers}): rename them with \
             `LoadOptions::key_mapping([(r\"{pattern}\", \"\")])`, in the program with `--key-mapping '{pattern}='`"
        ),
        None => OTHER.to_owned(),
    }
    };
    if !matched.missing.is_empty() && !allow_missing {
        let others = [&matched.unexpected[..], &matched.foreign[..]].concat();
        let others = match others.len() {
            0 => "it has no others".to_owned(),
            count => format!("it has {count} others: {}", listed(&others)),
        };
        refuse!(
            MissingKeys,
            "the adapter lacks {} of {} tensors that its configuration selects {place}: {}; {others}. {}, or keep the \
             base's values for them with `LoadOptions::allow_missing`",
            matched.missing.len(),
            wanted.len(),
            listed(&matched.missing),
            cure()
        );
    }
    if !matched.unexpected.is_empty() && !allow_unexpected {
        refuse!(
            UnexpectedKeys,
            "{} tensors of the adapter belong to no selected module {place}: {}. {}, or leave them out with \
             `LoadOptions::allow_unexpected`",
            matched.unexpected.len(),
            listed(&matched.unexpected),
            cure()
        );
    }
    Ok(())
}

/// The wrappers in the keys, and the pattern without whose matches more keys fit.
fn unwrapped(
    matched: &Matched,
    wanted: &[&SelectedTensor],
    keys: &[&str],
) -> Option<(String, String)> {
    let wrappers = wrappers_in(keys);
    let any = match wrappers[..] {
        [] => return None,
        [only] => only.to_owned(),
        _ => format!("({})", wrappers.join("|")),
    };
    // In front of all else, or of each module.
    let patterns =
        [format!(r"^({any}\.)+(base_model\.model\.)?"), format!(r"^{any}\."), format!(r"{any}\.")];
    let missing = |pattern: &String| {
        let mapping = KeyMapping::new(&[(pattern.as_str(), "")]).ok()?;
        Some(match_keys(wanted, keys, "default", &mapping).ok()?.missing.len())
    };
    let counted = patterns.into_iter().filter_map(|pattern| Some((missing(&pattern)?, pattern)));
    // Of those that find the most, the shortest.
    let best = counted.min_by_key(|(missing, pattern)| (*missing, pattern.len()));
    let better = best.filter(|(missing, _)| *missing < matched.missing.len());
    better.map(|(_, pattern)| (wrappers.join(", "), pattern))
}
