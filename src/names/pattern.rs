//! PEFT's "string or list" over module paths.

use crate::error::{refusal, Error, Result};

/// A regular expression with the meaning of Python's `re.fullmatch` or `re.search`.
///
/// The linear-time `regex` crate runs it where it can; look-around and back-references fall back to `fancy-regex`.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    Linear(regex::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// Matches a whole path, as `re.fullmatch(pattern, path)`. `key` names the setting in errors.
    pub(crate) fn full(pattern: &str, key: &str) -> Result<Self> {
        Self::compile(pattern, key, |flags, body| format!(r"\A{flags}(?:{body})\z"))
    }

    /// Searches anywhere, as `re.search(pattern, path)`.
    pub(crate) fn search(pattern: &str, key: &str) -> Result<Self> {
        Self::compile(pattern, key, |flags, body| format!("{flags}(?:{body})"))
    }

    fn compile(pattern: &str, key: &str, wrap: impl Fn(&str, &str) -> String) -> Result<Self> {
        let translated = from_python(pattern);
        let (flags, body) = split_flags(&translated);
        // In verbose mode a trailing comment would swallow the closing parenthesis.
        let body = if flags.contains('x') { format!("{body}\n") } else { body.to_owned() };
        let wrapped = wrap(flags, &body);
        // Checked alone too: `a)(b` is balanced only by the group around it.
        let linear = regex::Regex::new(&translated).and_then(|_| regex::Regex::new(&wrapped));
        match linear {
            Ok(regex) => Ok(Pattern::Linear(regex)),
            Err(_) => fancy_regex::Regex::new(&translated)
                .and_then(|_| fancy_regex::Regex::new(&wrapped))
                .map(|regex| Pattern::Backtracking(Box::new(regex)))
                .map_err(|source| {
                    refusal!(
                        InvalidPattern,
                        "{key}: '{pattern}' is not a regular expression. Escape special characters with a \
                         backslash, or give a list of module names, which are taken literally"
                    )
                    .caused_by(source)
                }),
        }
    }

    pub(crate) fn is_match(&self, text: &str) -> Result<bool> {
        match self {
            Pattern::Linear(regex) => Ok(regex.is_match(text)),
            Pattern::Backtracking(regex) => {
                regex.is_match(text).map_err(|e| gave_up(regex, text, e))
            }
        }
    }

    /// Replaces the first match; `replacement` uses Python's `\1` and `\g<name>`. `None` where nothing matches.
    pub(crate) fn replace(&self, text: &str, replacement: &str) -> Result<Option<String>> {
        if !self.is_match(text)? {
            return Ok(None);
        }
        let template = replacement_from_python(replacement);
        match self {
            Pattern::Linear(regex) => Ok(Some(regex.replace(text, template.as_str()).into_owned())),
            Pattern::Backtracking(regex) => {
                let replaced = regex.try_replacen(text, 1, template.as_str());
                replaced.map(|t| Some(t.into_owned())).map_err(|e| gave_up(regex, text, e))
            }
        }
    }
}

/// The error for too much backtracking, which must not count as "no match".
fn gave_up(regex: &fancy_regex::Regex, text: &str, source: fancy_regex::Error) -> Error {
    refusal!(
        InvalidPattern,
        "gave up matching '{}' against '{text}': simplify the pattern",
        regex.as_str()
    )
    .caused_by(source)
}

/// A list entry matches the path itself, or its end after a dot.
pub(crate) fn matches_suffix(path: &str, entry: &str) -> bool {
    path.strip_suffix(entry).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Translates Python's `\Z`, the end of the text; its other differences in syntax are rare in module patterns.
fn from_python(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        translated.push(c);
        if c == '\\' {
            match chars.next() {
                Some('Z') => translated.push('z'),
                Some(escaped) => translated.push(escaped),
                None => {}
            }
        }
    }
    translated
}

/// Splits off the flags at the front, such as `(?i)`; in Python they apply to the whole pattern.
fn split_flags(pattern: &str) -> (&str, &str) {
    if let Some(end) = pattern.strip_prefix("(?").and_then(|rest| rest.find(')')) {
        let flags = &pattern[2..2 + end];
        if !flags.is_empty() && flags.chars().all(|c| "imsxu".contains(c)) {
            return pattern.split_at(end + 3);
        }
    }
    ("", pattern)
}

/// Translates `\1` and `\g<name>` to `${1}` and `${name}`, and doubles a literal `$`.
fn replacement_from_python(replacement: &str) -> String {
    let mut template = String::with_capacity(replacement.len());
    let mut rest = replacement;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '$' => template.push_str("$$"),
            '\\' => {
                let digits =
                    rest.len() - rest.trim_start_matches(|d: char| d.is_ascii_digit()).len();
                let digits = digits.min(2);
                if digits > 0 {
                    template.push_str(&format!("${{{}}}", &rest[..digits]));
                    rest = &rest[digits..];
                } else if let Some((name, after)) =
                    rest.strip_prefix("g<").and_then(|r| r.split_once('>'))
                {
                    template.push_str(&format!("${{{name}}}"));
                    rest = after;
                } else if let Some(escaped) = rest.chars().next() {
                    template.push(escaped);
                    rest = &rest[escaped.len_utf8()..];
                }
            }
            other => template.push(other),
        }
    }
    template
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

    #[test]
    fn replacements_are_written_as_in_python() {
        let pattern = Pattern::search(r"^encoder\.layer\.(\d+)", "key_mapping").unwrap();
        let replaced = pattern.replace("encoder.layer.3.x", r"layers.\1").unwrap();
        assert_eq!(replaced.as_deref(), Some("layers.3.x"));
        assert_eq!(pattern.replace("decoder.layer.3", "").unwrap(), None);
    }
}
