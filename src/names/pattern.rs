//! PEFT's "string or list" over module paths.

use std::borrow::Cow;

use super::python_re::{translate, Translated, Usage};
use super::python_source::Refused;
use crate::error::{refusal, shortened, Error, Result};

/// A regular expression with the meaning of Python's `re`; one that cannot have it is refused.
///
/// The linear-time `regex` crate runs it where it can; look-around and back-references fall back to `fancy-regex`.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    engine: Engine,
    /// As the user wrote it, for errors.
    written: String,
}

#[derive(Debug, Clone)]
enum Engine {
    Linear(regex::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// Matches a whole path, as `re.fullmatch(pattern, path)`. `key` names the setting in errors.
    pub(crate) fn full(pattern: &str, key: &str) -> Result<Self> {
        let translated = Translated::of(pattern, Usage::Match, key)?;
        Pattern::compile(&format!(r"\A(?:{})\z", translated.text), pattern, key)
    }

    /// Searches anywhere, as `re.search(pattern, path)`.
    pub(super) fn search(translated: &Translated, pattern: &str, key: &str) -> Result<Self> {
        Pattern::compile(&translated.text, pattern, key)
    }

    /// Searches for a match that is not empty and begins where the search does.
    pub(super) fn not_empty(translated: &Translated, pattern: &str, key: &str) -> Result<Self> {
        let text = format!(r"\G(?:{})", translated.text);
        let regex = fancy_regex::RegexBuilder::new(&text).find_not_empty(true).build();
        let regex = regex.map_err(|source| unfit(pattern, key, source))?;
        Ok(Pattern { engine: Engine::Backtracking(Box::new(regex)), written: pattern.to_owned() })
    }

    fn compile(text: &str, pattern: &str, key: &str) -> Result<Self> {
        let linear = regex::RegexBuilder::new(text).size_limit(SIZE + 64 * text.len()).build();
        let engine = match linear {
            Ok(regex) => Engine::Linear(regex),
            Err(too_large @ regex::Error::CompiledTooBig(_)) => {
                return Err(unfit(pattern, key, too_large));
            }
            Err(_) => {
                let regex = fancy_regex::Regex::new(text);
                let regex = regex.map_err(|source| unfit(pattern, key, source))?;
                Engine::Backtracking(Box::new(regex))
            }
        };
        Ok(Pattern { engine, written: pattern.to_owned() })
    }

    pub(crate) fn is_match(&self, text: &str) -> Result<bool> {
        match &self.engine {
            Engine::Linear(regex) => Ok(regex.is_match(text)),
            Engine::Backtracking(regex) => {
                regex.is_match(text).map_err(|source| self.gave_up(text, source))
            }
        }
    }

    /// The places of the first match from `start` on, and of its groups.
    pub(super) fn groups_at(&self, text: &str, start: usize) -> Result<Option<Groups>> {
        Ok(match &self.engine {
            Engine::Linear(regex) => regex
                .captures_at(text, start)
                .map(|found| found.iter().map(|group| group.map(|m| m.range())).collect()),
            Engine::Backtracking(regex) => regex
                .captures_from_pos(text, start)
                .map_err(|source| self.gave_up(text, source))?
                .map(|found| found.iter().map(|group| group.map(|m| m.range())).collect()),
        })
    }

    /// The error for too much backtracking, which must not count as "no match".
    fn gave_up(&self, text: &str, source: fancy_regex::Error) -> Error {
        refusal!(
            InvalidPattern,
            "gave up matching '{}' against '{}': simplify the pattern",
            shown(&self.written),
            shown(text)
        )
        .caused_by(source)
    }
}

/// The largest compiled pattern in bytes, beside what its own text needs: an adapter of 20,000 modules may name them
/// all.
const SIZE: usize = 10 << 20;

/// The places of a match and of its groups.
pub(super) type Groups = Vec<Option<std::ops::Range<usize>>>;

impl Translated {
    /// A pattern for Rust. `key` names the setting in errors.
    pub(super) fn of(pattern: &str, usage: Usage, key: &str) -> Result<Self> {
        translate(pattern, usage).map_err(|Refused { reason, at }| {
            refusal!(
                InvalidPattern,
                "{key}: '{}' is not a regular expression of Python that can be used here: {reason} (up to character \
                 {at}). Escape special characters with a backslash, or give a list of module names, which are taken \
                 literally",
                shown(pattern)
            )
        })
    }
}

/// The error for a pattern that Python takes and Rust's engines do not.
fn unfit(
    pattern: &str,
    key: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    refusal!(
        InvalidPattern,
        "{key}: '{}' is too large or too involved a regular expression: simplify it, or give a list of module names",
        shown(pattern)
    )
    .caused_by(source)
}

/// The beginning of a text, for errors.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    shortened(text, 200)
}

/// A list entry matches the path itself, or its end after a dot.
pub(crate) fn matches_suffix(path: &str, entry: &str) -> bool {
    path.strip_suffix(entry).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn full(pattern: &str, path: &str) -> bool {
        Pattern::full(pattern, "target_modules").unwrap().is_match(path).unwrap()
    }

    #[test]
    fn a_string_must_match_the_whole_path() {
        assert!(full("norm", "norm"));
        assert!(!full("norm", "model.norm"));
        assert!(full(".*norm", "model.norm"));
        assert!(full("a|ab", "ab"));
        assert!(!full("norm$", "norm\n"));
    }

    #[test]
    fn python_features_work() {
        assert!(full("(?i).*NORM", "model.norm"));
        assert!(full(r".*\.(?!0\b)\d+\.norm", "layers.1.norm"));
        assert!(!full(r".*\.(?!0\b)\d+\.norm", "layers.0.norm"));
        assert!(full(r"(?P<a>\w)\.(?P=a)", "x.x"));
        assert!(full(r"norm\Z", "norm"));
        assert!(full("(?x) norm # the last one", "norm"));
    }

    #[test]
    fn a_pattern_that_does_not_compile_names_the_setting_and_the_cure() {
        for bad in ["(", "a)(b", "*", "[z-a]"] {
            let error = Pattern::full(bad, "exclude_modules").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidPattern);
            assert!(
                error.to_string().contains("exclude_modules") && error.to_string().contains(bad)
            );
        }
    }

    #[test]
    fn a_large_repetition_is_refused_as_such() {
        for large in [r"\w{100000}", r"(?:(?:a{999}){999}){999}", r"(?=b)\w{100000}"] {
            let error = Pattern::full(large, "target_modules").unwrap_err();
            assert!(error.to_string().contains("too large"), "{error}");
        }
    }

    #[test]
    fn runaway_backtracking_is_an_error_and_not_a_mismatch() {
        let pattern = Pattern::full("(?:a|b|ab)*(?>c)", "target_modules").unwrap();
        let error = pattern.is_match(&"ab".repeat(60)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPattern);
    }

    #[test]
    fn a_list_entry_matches_on_a_dot_boundary() {
        assert!(matches_suffix("model.norm", "norm"));
        assert!(matches_suffix("norm", "norm"));
        assert!(matches_suffix("layers.0.input_layernorm", "0.input_layernorm"));
        assert!(!matches_suffix("model.q_norm", "norm"));
        assert!(!matches_suffix("model.norm", ".norm"));
        assert!(!matches_suffix("model.Norm", "norm"));
    }
}
