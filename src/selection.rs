//! Which tensors an adapter trains: a value, computed from names, shapes and a configuration.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use tch::Kind;

pub use crate::architectures::Norms;
use crate::architectures::{model_types, norm_names};
use crate::config::{LnTuningConfig, Modules};
use crate::error::{Error, ErrorKind, Result};
use crate::pattern::{matches_suffix, Pattern};

/// What selection knows of a variable.
#[derive(Debug, Clone, PartialEq)]
pub struct VariableInfo {
    /// Its full name: the path of its module, a dot, its own name there.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its kind.
    pub kind: Kind,
    /// False for buffers, such as BatchNorm statistics.
    pub is_parameter: bool,
}

/// A module that an adapter replaces, with all tensors in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedModule {
    /// The path of the module.
    pub path: String,
    /// Whether it was chosen by `modules_to_save`, and not by `target_modules`.
    pub saved: bool,
    /// The full names of its variables.
    pub variables: Vec<String>,
}

/// The modules that an adapter replaces, and how PEFT is told to choose the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    modules: Vec<SelectedModule>,
    targets: Modules,
    excludes: Option<Modules>,
    saves: Option<Vec<String>>,
}

impl Selection {
    /// Selects by PEFT's rules: first `exclude_modules`, then `modules_to_save`, then `target_modules`.
    ///
    /// Without `target_modules` the table `norms` decides for a known `model_type`; otherwise every LayerNorm and
    /// RMSNorm is taken that shows by its name and the shape of its tensors. A container (a path with modules below
    /// it, such as `mlp`) stands for the modules in it.
    ///
    /// # Errors
    /// `NoTargetModules` for an empty list or string; `NoMatchingModules` if no module matches; `AllModulesExcluded`
    /// if all that match are excluded; `InvalidPattern`; `UnsupportedVariable` if a parameter in a selected module is
    /// not a floating-point tensor.
    pub fn new(
        variables: &[VariableInfo],
        config: &LnTuningConfig,
        model_type: Option<&str>,
        norms: Norms,
    ) -> Result<Self> {
        let tree = Tree::of(variables);
        let targets = match &config.target_modules {
            Some(targets) if targets.is_empty() => {
                return Err(Error::new(
                    ErrorKind::NoTargetModules,
                    "`target_modules` is empty: name at least one module, or leave it out to take the norms",
                ));
            }
            Some(Modules::Pattern(all)) if all.eq_ignore_ascii_case("all-linear") => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "`target_modules: all-linear` is not offered: a VarStore does not say which modules are Linear. \
                     List their names",
                ));
            }
            Some(targets) => targets.clone(),
            None => default_targets(&tree, model_type, norms)?,
        };
        let rules = Rules::new(
            &targets,
            config.exclude_modules.as_ref(),
            config.modules_to_save.as_deref(),
        )?;
        let mut verdicts = BTreeMap::new();
        for path in tree.paths() {
            verdicts.insert(path.to_owned(), rules.verdict(path)?);
        }
        let chosen = |path: &&String| verdicts[path.as_str()] == Verdict::Targeted;
        let targeted: Vec<String> = verdicts.keys().filter(chosen).cloned().collect();
        let mut saved = Vec::new();
        for path in tree.paths() {
            if rules.is_saved(path)? {
                saved.push(path.to_owned());
            }
        }
        if let (true, Some(names)) =
            (saved.is_empty(), config.modules_to_save.as_ref().filter(|n| !n.is_empty()))
        {
            return Err(Error::new(
                ErrorKind::NoMatchingModules,
                format!(
                    "no module matches `modules_to_save` '{}'. Modules: {}",
                    names.join("', '"),
                    sample(tree.paths())
                ),
            ));
        }
        if targeted.is_empty() {
            return Err(nothing_selected(&tree, &targets, &rules, &verdicts)?);
        }
        let excluded_any = verdicts.values().any(|v| *v == Verdict::Excluded);
        let mut modules: BTreeMap<Natural, SelectedModule> = BTreeMap::new();
        for (roots, is_saved) in [(&targeted, false), (&saved, true)] {
            for root in roots {
                for leaf in tree.leaves(root) {
                    // Excluding a module inside a targeted container excludes it; PEFT would copy it along.
                    if !is_saved && matches!(verdicts[leaf], Verdict::Excluded | Verdict::Saved) {
                        continue;
                    }
                    let module = SelectedModule {
                        path: leaf.to_owned(),
                        saved: is_saved,
                        variables: tree.tensors(leaf).map(|v| v.name.clone()).collect(),
                    };
                    modules.entry(Natural(leaf.to_owned())).or_insert(module);
                }
            }
        }
        let modules: Vec<SelectedModule> = modules.into_values().collect();
        for module in &modules {
            tree.tensors(&module.path).try_for_each(check_kind)?;
        }
        let excludes = config.exclude_modules.clone().filter(|_| excluded_any);
        let (targets, excludes) = exportable(&tree, &modules, config, targets, excludes)?;
        Ok(Selection { modules, targets, excludes, saves: config.modules_to_save.clone() })
    }

    /// The selected modules, in natural order of their paths (`layers.2` before `layers.10`).
    pub fn modules(&self) -> &[SelectedModule] {
        &self.modules
    }

    /// The full names of all selected variables, in the order of the modules.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().flat_map(|module| module.variables.iter().map(String::as_str))
    }

    /// `config` with explicit `target_modules` that make PEFT select exactly these modules, without a warning.
    ///
    /// What the user wrote stays where it does that; else names are derived, sorted.
    pub fn export_config(&self, config: &LnTuningConfig) -> LnTuningConfig {
        LnTuningConfig {
            target_modules: Some(self.targets.clone()),
            exclude_modules: self.excludes.clone(),
            modules_to_save: self.saves.clone(),
            ..config.clone()
        }
    }
}

/// Compares names so that numbers in them count as numbers: `layers.2` before `layers.10`.
pub fn natural_cmp(a: &str, b: &str) -> Ordering {
    let digits =
        |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (mut x, mut y) = (a, b);
    while !x.is_empty() && !y.is_empty() {
        let (m, n) = (digits(x), digits(y));
        if m > 0 && n > 0 {
            let (p, q) = (x[..m].trim_start_matches('0'), y[..n].trim_start_matches('0'));
            let order = p.len().cmp(&q.len()).then_with(|| p.cmp(q));
            if order != Ordering::Equal {
                return order;
            }
            (x, y) = (&x[m..], &y[n..]);
        } else {
            let (c, d) = (x.chars().next(), y.chars().next());
            if c != d {
                return c.cmp(&d);
            }
            let len = c.map_or(0, char::len_utf8);
            (x, y) = (&x[len..], &y[len..]);
        }
    }
    // Equal but for leading zeros: any fixed order will do.
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Natural(String);

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        natural_cmp(&self.0, &other.0)
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The modules that the names of variables show.
struct Tree<'a> {
    /// Every path that is a prefix of a name, with the variables that lie directly in it.
    modules: BTreeMap<&'a str, Vec<&'a VariableInfo>>,
}

impl<'a> Tree<'a> {
    fn of(variables: &'a [VariableInfo]) -> Self {
        let mut modules: BTreeMap<&str, Vec<&VariableInfo>> = BTreeMap::new();
        for variable in variables {
            let name = variable.name.as_str();
            let dots: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
            for dot in &dots {
                modules.entry(&name[..*dot]).or_default();
            }
            if let Some(dot) = dots.last() {
                modules.entry(&name[..*dot]).or_default().push(variable);
            }
        }
        Tree { modules }
    }

    fn paths(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.modules.keys().copied()
    }

    fn tensors(&self, path: &str) -> impl Iterator<Item = &'a VariableInfo> + '_ {
        self.modules.get(path).into_iter().flatten().copied()
    }

    fn is_leaf(&self, path: &str) -> bool {
        let from = (Bound::Excluded(path), Bound::Unbounded);
        !self
            .modules
            .range::<str, _>(from)
            .take_while(|(p, _)| p.starts_with(path))
            .any(|(p, _)| below(p, path))
    }

    /// The modules that hold tensors, from `root` downwards.
    fn leaves<'s>(&'s self, root: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.modules
            .range::<str, _>((Bound::Included(root), Bound::Unbounded))
            .take_while(move |(path, _)| path.starts_with(root))
            .filter(move |(path, tensors)| {
                !tensors.is_empty() && (**path == root || below(path, root))
            })
            .map(|(path, _)| *path)
    }

    /// A LayerNorm or RMSNorm, judged by name and shape.
    fn is_norm(&self, path: &str) -> bool {
        let last = path.rsplit('.').next().unwrap_or(path);
        // Lists of norms (`norms.0`) are named by their parent.
        let last = match last.chars().all(|c| c.is_ascii_digit()) {
            true => path.rsplit('.').nth(1).unwrap_or(last),
            false => last,
        };
        let last = last.to_ascii_lowercase();
        let named = last.contains("norm")
            || last.contains("layrnorm")
            || last.split('_').any(|part| {
                part.strip_prefix("ln").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()))
            });
        let mut weight = None;
        for tensor in self.tensors(path) {
            match &tensor.name[path.len() + 1..] {
                "weight" if tensor.shape.len() == 1 => weight = Some(&tensor.shape),
                "bias" if tensor.shape.len() == 1 => {}
                _ => return false,
            }
        }
        let bias_fits = self.tensors(path).all(|tensor| Some(&tensor.shape) == weight);
        named && weight.is_some() && bias_fits && self.is_leaf(path)
    }
}

fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Excluded,
    Saved,
    Targeted,
    Other,
}

/// PEFT's three settings, compiled.
struct Rules {
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
    fn new(targets: &Modules, exclude: Option<&Modules>, save: Option<&[String]>) -> Result<Self> {
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
    fn is_saved(&self, path: &str) -> Result<bool> {
        for pattern in &self.save {
            if pattern.is_match(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn verdict(&self, path: &str) -> Result<Verdict> {
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

fn default_targets(tree: &Tree, model_type: Option<&str>, norms: Norms) -> Result<Modules> {
    let known = model_type.and_then(|model_type| norm_names(model_type, norms));
    if let Some(names) = known {
        return Ok(Modules::List(names.into_iter().map(str::to_owned).collect()));
    }
    let found: Vec<String> =
        tree.paths().filter(|path| tree.is_norm(path)).map(str::to_owned).collect();
    if found.is_empty() {
        let (sample, known) = (sample(tree.paths()), model_types(norms).join(", "));
        return Err(Error::new(
            ErrorKind::NoTargetModules,
            format!(
                "no LayerNorm or RMSNorm was found by name and shape among {sample}: name the modules in \
                 `target_modules`, or give the model type ({known})"
            ),
        ));
    }
    Ok(Modules::List(found))
}

fn nothing_selected(
    tree: &Tree,
    targets: &Modules,
    rules: &Rules,
    verdicts: &BTreeMap<String, Verdict>,
) -> Result<Error> {
    let mut matching = 0;
    for path in tree.paths() {
        matching += usize::from(rules.target.is_match(path)?);
    }
    if matching > 0 {
        let saved = verdicts.values().filter(|v| **v == Verdict::Saved).count();
        return Ok(Error::new(
            ErrorKind::AllModulesExcluded,
            format!(
                "all {matching} modules that `target_modules` matches are left out by `exclude_modules`{}: \
                 narrow what is excluded",
                if saved > 0 { " or stand in `modules_to_save`" } else { "" }
            ),
        ));
    }
    let wanted = match targets {
        Modules::Pattern(pattern) => pattern.clone(),
        Modules::List(names) => names.join("', '"),
    };
    let needles: Vec<&str> = match targets {
        Modules::Pattern(pattern) => vec![pattern],
        Modules::List(names) => names.iter().map(String::as_str).collect(),
    };
    let with_tensors = tree.paths().filter(|path| tree.tensors(path).next().is_some());
    let mut nearest: Vec<(usize, &str)> = with_tensors
        .map(|path| (needles.iter().map(|n| distance(n, path)).min().unwrap_or(usize::MAX), path))
        .collect();
    nearest.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| natural_cmp(a.1, b.1)));
    let nearest = sample(nearest.iter().map(|(_, path)| *path));
    Ok(Error::new(
        ErrorKind::NoMatchingModules,
        format!(
            "no module matches `target_modules` '{wanted}'. The nearest are {nearest}. \
             A string is a regular expression for the whole path, a list entry matches the path or its end"
        ),
    ))
}

/// How far an entry is from a path: letters of its letters against the path's end, so that `layernorm` finds `ln.layer_norm`.
fn distance(needle: &str, path: &str) -> usize {
    let needle: String =
        needle.chars().filter(|c| c.is_alphanumeric() || "._".contains(*c)).collect();
    let depth = needle.matches('.').count() + 1;
    let segments: Vec<&str> = path.split('.').collect();
    let end = segments[segments.len().saturating_sub(depth)..].join(".");
    edit_distance(&needle.to_lowercase(), &end.to_lowercase())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn sample<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<String> = paths.take(5).map(|path| format!("'{path}'")).collect();
    if shown.is_empty() {
        "no modules".into()
    } else {
        shown.join(", ")
    }
}

fn check_kind(variable: &VariableInfo) -> Result<()> {
    let float = matches!(variable.kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
    if variable.is_parameter && !float {
        return Err(Error::new(
            ErrorKind::UnsupportedVariable,
            format!(
                "'{}' was selected but its kind is {:?}, expected Float, Double, Half or BFloat16: \
                 exclude its module with `exclude_modules`",
                variable.name, variable.kind
            ),
        ));
    }
    Ok(())
}

/// What to write so that PEFT selects the same leaf modules: the user's words, or names derived from the result.
fn exportable(
    tree: &Tree,
    modules: &[SelectedModule],
    config: &LnTuningConfig,
    targets: Modules,
    excludes: Option<Modules>,
) -> Result<(Modules, Option<Modules>)> {
    let tuned: BTreeSet<&str> =
        modules.iter().filter(|m| !m.saved).map(|m| m.path.as_str()).collect();
    let selects = |targets: &Modules, excludes: Option<&Modules>| -> Result<bool> {
        let rules = Rules::new(targets, excludes, config.modules_to_save.as_deref())?;
        let mut found = BTreeSet::new();
        for path in tree.paths() {
            if rules.verdict(path)? == Verdict::Targeted {
                found.insert(path);
            }
        }
        Ok(found == tuned)
    };
    if config.target_modules.is_some() && selects(&targets, excludes.as_ref())? {
        return Ok((targets, excludes));
    }
    let last = |path: &&str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let suffixes: BTreeSet<String> = tuned.iter().map(last).collect();
    let suffixes = Modules::list(suffixes);
    for excludes in [None, excludes.as_ref()] {
        if selects(&suffixes, excludes)? {
            return Ok((suffixes, excludes.cloned()));
        }
    }
    let paths = Modules::list(tuned.iter().copied());
    if selects(&paths, None)? {
        return Ok((paths, None));
    }
    // A path that is the end of another one can only be told apart by a pattern for the whole.
    let escaped: Vec<String> = tuned.iter().map(|path| regex::escape(path)).collect();
    Ok((Modules::Pattern(escaped.join("|")), None))
}
