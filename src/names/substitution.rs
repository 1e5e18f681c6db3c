//! A pattern and what replaces it.

use super::pattern::{Groups, Pattern};
use super::python_re::{Translated, Usage};
use super::replacement::Replacement;
use crate::error::Result;

/// A pattern and what replaces each of its matches, as Python's `re.subn`.
#[derive(Debug, Clone)]
pub(crate) struct Substitution {
    pattern: Pattern,
    /// For patterns that match the empty text and others.
    not_empty: Option<Pattern>,
    replacement: Replacement,
}

impl Substitution {
    /// `key` names the setting in errors.
    pub(crate) fn new(pattern: &str, replacement: &str, key: &str) -> Result<Self> {
        let translated = Translated::of(pattern, Usage::Rename, key)?;
        let elastic = translated.width.0 == 0 && translated.width.1 > 0;
        Ok(Substitution {
            pattern: Pattern::search(&translated, pattern, key)?,
            not_empty: if elastic {
                Some(Pattern::not_empty(&translated, pattern, key)?)
            } else {
                None
            },
            replacement: Replacement::new(replacement, &translated, key)?,
        })
    }

    /// The text with all matches replaced. `None` where nothing matches.
    pub(crate) fn apply(&self, text: &str) -> Result<Option<String>> {
        let (mut replaced, mut at, mut was_empty, mut any) = (String::new(), 0, false, false);
        while let Some(groups) = self.find(text, at, was_empty)? {
            let Some(place) = groups[0].clone() else { break };
            replaced.push_str(&text[at..place.start]);
            self.replacement.expand(text, &groups, &mut replaced);
            (at, was_empty, any) = (place.end, place.is_empty(), true);
        }
        replaced.push_str(&text[at..]);
        Ok(any.then_some(replaced))
    }

    /// The next match. After an empty one, Python takes another at the same place only if it is not empty.
    fn find(&self, text: &str, at: usize, was_empty: bool) -> Result<Option<Groups>> {
        if !was_empty {
            return self.pattern.groups_at(text, at);
        }
        if let Some(not_empty) = &self.not_empty {
            let found = not_empty.groups_at(text, at)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        match text[at..].chars().next() {
            Some(c) => self.pattern.groups_at(text, at + c.len_utf8()),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn replaced(pattern: &str, replacement: &str, text: &str) -> Option<String> {
        Substitution::new(pattern, replacement, "key_mapping").unwrap().apply(text).unwrap()
    }

    #[test]
    fn replacements_are_written_as_in_python() {
        let rule = [r"^encoder\.layer\.(?P<n>\d+)", r"$0\g<n>.\1\\\x2e"];
        let error = Substitution::new(rule[0], rule[1], "key_mapping").unwrap_err();
        assert!(error.to_string().contains(r"\x"), "{error}");
        let text = "encoder.layer.3.x";
        let found = replaced(rule[0], r"$0\g<n>.\1\\\056\n\g<0>", text);
        assert_eq!(found.as_deref(), Some("$03.3\\.\nencoder.layer.3.x"));
        assert_eq!(replaced("(a)|b", r"<\1>", "ab").as_deref(), Some("<a><>"));
        assert_eq!(replaced("-", r"\-\.\é", "a-b").as_deref(), Some(r"a\-\.\éb"));
        assert_eq!(replaced("decoder", "", text), None);
    }

    #[test]
    fn every_match_is_replaced_and_empty_ones_as_in_python() {
        for (pattern, text, expected) in [
            ("a", "banana", "b-n-n-"),
            ("x*", "abxd", "-a-b--d-"),
            ("|a", "aa", "-----"),
            ("a??", "é", "-é-"),
            (r"^(model\.)?", "layers.0", "-layers.0"),
            (r"^(model\.)?", "model.layers.0", "-layers.0"),
            (r"\b", "a.b", "-a-.-b-"),
            ("$", "a\n", "a-\n-"),
        ] {
            assert_eq!(replaced(pattern, "-", text).as_deref(), Some(expected), "{pattern}");
        }
    }

    #[test]
    fn a_bad_replacement_is_refused_before_anything_is_renamed() {
        for bad in [r"\2", r"\g<2>", r"\g<name>", r"\g", r"\g<", r"\q", "\\", r"\g<>", r"\400"] {
            let error = Substitution::new("(a)", bad, "key_mapping").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidPattern, "{bad}");
            assert!(error.to_string().contains("key_mapping"), "{error}");
        }
    }
}
