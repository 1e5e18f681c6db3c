//! PEFT's three settings on a module path: excluded, saved, targeted or neither.

use std::collections::{BTreeSet, HashSet};

use crate::adapter::config::{LnTuningConfig, Modules};
use crate::adapter::task_type::TaskType;
use crate::error::{refuse, Result};
use crate::names::pattern::Pattern;

/// The heads that PEFT adds to `modules_to_save` for a task.
pub(crate) fn head_names(task_type: Option<TaskType>) -> &'static [&'static str] {
    match task_type {
        Some(TaskType::SeqCls | TaskType::TokenCls) => &["classifier", "score"],
        Some(TaskType::QuestionAns) => &["qa_outputs"],
        _ => &[],
    }
}

/// The configuration with the heads of its task in `modules_to_save`.
pub(crate) fn with_head_names(config: &LnTuningConfig) -> LnTuningConfig {
    let mut config = config.clone();
    for name in head_names(config.task_type) {
        let saved = config.modules_to_save.get_or_insert_default();
        if !saved.iter().any(|known| known == name) {
            saved.push((*name).to_owned());
        }
    }
    config
}

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
    /// The names in `modules_to_save`.
    save: Names,
    /// Those that are a plain word: they keep the modules from being targeted that have it in their path.
    keep_words: HashSet<String>,
    /// Patterns for the modules that each of the others keeps from it.
    keep: Vec<Pattern>,
    target: Matcher,
}

enum Matcher {
    Pattern(Pattern),
    List(Names),
}

/// Names to compare with the ends of paths; by their lengths, so that a long path costs no more than a short one.
struct Names {
    names: HashSet<String>,
    /// In bytes.
    lengths: BTreeSet<usize>,
}

impl Names {
    fn new(names: &[String]) -> Self {
        let lengths = names.iter().map(String::len).collect();
        Names { names: names.iter().cloned().collect(), lengths }
    }

    /// The names with which a path ends.
    fn ending<'p>(&'p self, path: &'p str) -> impl Iterator<Item = &'p str> {
        let end = |length: &usize| path.get(path.len().checked_sub(*length)?..);
        self.lengths.iter().filter_map(end).filter(|end| self.names.contains(*end))
    }
}

impl Matcher {
    fn new(modules: &Modules, key: &str) -> Result<Self> {
        match modules {
            Modules::Pattern(pattern) => Ok(Matcher::Pattern(Pattern::full(pattern, key)?)),
            Modules::List(names) => Ok(Matcher::List(Names::new(names))),
        }
    }

    fn is_match(&self, path: &str) -> Result<bool> {
        match self {
            Matcher::Pattern(pattern) => pattern.is_match(path),
            // The path itself, or its end behind a dot.
            Matcher::List(names) => Ok(names.ending(path).any(|end| {
                let before = &path[..path.len() - end.len()];
                before.is_empty() || before.ends_with('.')
            })),
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
        let save = save.unwrap_or_default();
        let is_word = |name: &&String| {
            !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        };
        let (words, others): (Vec<&String>, Vec<&String>) = save.iter().partition(is_word);
        let keep = others.into_iter().map(|name| {
            if name.is_empty() {
                refuse!(
                    InvalidConfig,
                    "`modules_to_save` holds an empty name, which ends every path: leave it out"
                );
            }
            // PEFT puts the name into `re.match`, which need not reach the end of the path.
            let kept = format!(r"(?:(?:^|.*\.){name}(?:$|\..*))(?s:.*)");
            Pattern::full(&kept, "modules_to_save")
        });
        Ok(Rules {
            exclude: exclude.map(|modules| Matcher::new(modules, "exclude_modules")).transpose()?,
            save: Names::new(save),
            keep_words: words.into_iter().cloned().collect(),
            keep: keep.collect::<Result<_>>()?,
            target: Matcher::new(targets, "target_modules")?,
        })
    }

    /// True if the module is copied and saved as a whole, even if it is excluded: PEFT compares the letters at the end
    /// of the path, so that `classifier` means `pre_classifier` too.
    pub(crate) fn is_saved(&self, path: &str) -> bool {
        self.save.ending(path).next().is_some()
    }

    /// True if `modules_to_save` keeps the module from being targeted: it is named, from a dot on, or in one that is.
    fn is_kept(&self, path: &str) -> Result<bool> {
        if path.split('.').any(|part| self.keep_words.contains(part)) {
            return Ok(true);
        }
        for pattern in &self.keep {
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
        if self.is_kept(path)? {
            return Ok(Verdict::Saved);
        }
        Ok(if self.target.is_match(path)? { Verdict::Targeted } else { Verdict::Other })
    }
}
