//! PEFT's three settings on a module path: excluded, saved, targeted or neither.

use crate::adapter::config::Modules;
use crate::error::Result;
use crate::names::pattern::{matches_suffix, Pattern};

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
    List(Vec<String>),
}

impl Matcher {
    fn new(modules: &Modules, key: &str) -> Result<Self> {
        match modules {
            Modules::Pattern(pattern) => Ok(Matcher::Pattern(Pattern::full(pattern, key)?)),
            Modules::List(names) => Ok(Matcher::List(names.clone())),
        }
    }

    fn is_match(&self, path: &str) -> Result<bool> {
        match self {
            Matcher::Pattern(pattern) => pattern.is_match(path),
            Matcher::List(names) => Ok(names.iter().any(|name| matches_suffix(path, name))),
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
            // PEFT takes the name as a regular expression, on the module itself and everything below it.
            Pattern::full(&format!(r"(?:.*\.)?(?:{name})(?:\..*)?"), "modules_to_save")
        });
        Ok(Rules {
            exclude: exclude.map(|modules| Matcher::new(modules, "exclude_modules")).transpose()?,
            save: save.collect::<Result<_>>()?,
            target: Matcher::new(targets, "target_modules")?,
        })
    }

    /// Whether `modules_to_save` takes the module; there, excluding does not count.
    pub(crate) fn is_saved(&self, path: &str) -> Result<bool> {
        for pattern in &self.save {
            if pattern.is_match(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether `target_modules` alone takes the module.
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
        match self.target.is_match(path)? {
            true => Ok(Verdict::Targeted),
            false => Ok(Verdict::Other),
        }
    }
}
