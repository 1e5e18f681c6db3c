//! PEFT's three settings on a module path: excluded, saved, targeted or neither.

use std::collections::HashSet;

use crate::adapter::config::Modules;
use crate::error::Result;
use crate::names::pattern::Pattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Excluded,
    Saved,
    Targeted,
    Other,
}

/// PEFT's three settings, compiled.
pub(crate) struct Rules {
    exclude: Option<Matcher>,
    save: Vec<Pattern>,
    target: Matcher,
}

enum Matcher {
    Pattern(Pattern),
    List(HashSet<String>),
}

impl Matcher {
    fn new(modules: &Modules, key: &str) -> Result<Self> {
        match modules {
            Modules::Pattern(pattern) => Ok(Matcher::Pattern(Pattern::full(pattern, key)?)),
            Modules::List(names) => Ok(Matcher::List(names.iter().cloned().collect())),
        }
    }

    fn is_match(&self, path: &str) -> Result<bool> {
        match self {
            Matcher::Pattern(pattern) => pattern.is_match(path),
            // The path itself, or its end behind a dot.
            Matcher::List(names) => Ok(names.contains(path)
                || path.match_indices('.').any(|(dot, _)| names.contains(&path[dot + 1..]))),
        }
    }
}

impl Rules {
    pub(crate) fn new(
        targets: &Modules,
        exclude: Option<&Modules>,
        save: Option<&[String]>,
    ) -> Result<Self> {
        let exclude = exclude.filter(|modules| !modules.is_empty());
        let save = save.unwrap_or_default().iter().map(|name| {
            // PEFT matches the name as a regular expression, on the module itself and all modules below it.
            Pattern::full(&format!(r"(?:.*\.)?(?:{name})(?:\..*)?"), "modules_to_save")
        });
        Ok(Rules {
            exclude: exclude.map(|modules| Matcher::new(modules, "exclude_modules")).transpose()?,
            save: save.collect::<Result<_>>()?,
            target: Matcher::new(targets, "target_modules")?,
        })
    }

    /// True if `modules_to_save` matches the module, even if it is excluded.
    pub(crate) fn is_saved(&self, path: &str) -> Result<bool> {
        for pattern in &self.save {
            if pattern.is_match(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if `target_modules` alone matches the module.
    pub(crate) fn is_targeted(&self, path: &str) -> Result<bool> {
        self.target.is_match(path)
    }

    pub(crate) fn verdict(&self, path: &str) -> Result<Verdict> {
        if let Some(exclude) = &self.exclude {
            if exclude.is_match(path)? {
                return Ok(Verdict::Excluded);
            }
        }
        if self.is_saved(path)? {
            return Ok(Verdict::Saved);
        }
        Ok(if self.target.is_match(path)? { Verdict::Targeted } else { Verdict::Other })
    }
}
