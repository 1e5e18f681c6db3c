//! The tensors that an adapter trains: a value, computed from names, shapes and a configuration.

mod architectures;
mod export;
mod layers;
mod narrowed;
mod place;
mod rules;
mod selected;
mod targets;
mod tree;
mod unused;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

pub use architectures::Norms;
use export::{exportable, separable};
pub use layers::Layers;
pub use place::NormPlace;
use place::Places;
use rules::{head_names, with_head_names, Rules, Verdict};
pub(crate) use selected::SelectedTensor;
pub use selected::{Role, SelectedModule};
use targets::{default_targets, recipe_targets};
use tree::{around, Tree};
pub use unused::UnusedModule;

use crate::adapter::config::{both, LnTuningConfig, Modules};
use crate::error::{refusal, refuse, Error, Result};
use crate::names::natural::natural_cmp;
use crate::names::nearest::{listed, nearest, sample};
use crate::storage::info::{is_float, VariableInfo};

/// The modules that an adapter replaces, and the settings with which PEFT selects the same.
///
/// ```
/// use ln_tuning::{LnTuningConfig, Norms, Selection, VariableInfo};
/// let variable = |name: &str, shape: &[i64]| VariableInfo {
///     name: name.to_owned(),
///     shape: shape.to_vec(),
///     kind: tch::Kind::Float,
///     is_parameter: true,
/// };
/// let variables = [
///     variable("layers.0.norm.weight", &[8]),
///     variable("layers.0.norm.bias", &[8]),
///     variable("layers.0.linear.weight", &[8, 8]),
/// ];
/// let config = LnTuningConfig::default();
/// let selection = Selection::new(&variables, &config, None, Norms::Peft)?;
/// let names: Vec<&str> = selection.variables().collect();
/// assert_eq!(names, ["layers.0.norm.weight", "layers.0.norm.bias"]);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    modules: Vec<SelectedModule>,
    targets: Modules,
    excludes: Option<Modules>,
    saves: Option<Vec<String>>,
    idle_excludes: bool,
    /// Variables of the base that a saved adapter brings along. They are replaced and saved, and not trained.
    carried: BTreeSet<String>,
    /// Modules without a gradient; `None` if these were not asked for, as for a saved adapter, which has its own.
    unused: Option<Vec<UnusedModule>>,
}

impl Selection {
    /// Selects by PEFT's rules: first `exclude_modules`, then `modules_to_save`, then `target_modules`.
    ///
    /// An entry of `modules_to_save` means every module whose path ends in these letters, as in PEFT: `classifier` also
    /// means DistilBERT's `pre_classifier`. Tasks with a head of their own add its names: `classifier` and `score` for
    /// `SEQ_CLS` and `TOKEN_CLS`, `qa_outputs` for `QUESTION_ANS`.
    ///
    /// Without `target_modules`, a known `model_type` takes the modules of the table `norms`. For others, every
    /// LayerNorm and RMSNorm is taken that is recognised by its name and the shape of its tensors (a 1-D `weight` and
    /// at most a `bias`, or several of each if several norms were built at one path, so that tch named a second
    /// `weight__2`; a norm with a 2-D weight per attention head, and a BatchNorm, must be named). A container (a path
    /// with modules below it, such as `mlp`) means the modules in it.
    ///
    /// # Errors
    /// `NoTargetModules` for an empty list or string; `NoMatchingModules` if no module matches; `AllModulesExcluded`
    /// if all that match are excluded; `Unsupported` if a module is in both settings; `InvalidPattern`;
    /// `UnsupportedVariable` if a parameter in a selected module is not a floating-point tensor.
    pub fn new(
        variables: &[VariableInfo],
        config: &LnTuningConfig,
        model_type: Option<&str>,
        norms: Norms,
    ) -> Result<Self> {
        let selection = Self::of_saved(variables, config, model_type, norms)?;
        let names = config.modules_to_save.as_ref().filter(|names| !names.is_empty());
        let is_automatic = |name: &String| head_names(config.task_type).contains(&name.as_str());
        let idle = selection.modules.iter().all(|module| module.role == Role::Tuned);
        if let Some(names) = names.filter(|names| idle && !names.iter().all(is_automatic)) {
            refuse!(
                NoMatchingModules,
                "no module matches `modules_to_save` {}. Modules: {}",
                listed(names),
                sample(Tree::of(variables).paths())
            );
        }
        Ok(selection)
    }

    /// [`new`](Self::new) for an adapter that was saved: in `modules_to_save`, PEFT leaves names that match nothing.
    pub(crate) fn of_saved(
        variables: &[VariableInfo],
        config: &LnTuningConfig,
        model_type: Option<&str>,
        norms: Norms,
    ) -> Result<Self> {
        let tree = Tree::of(variables);
        let config = &with_head_names(config);
        if let Some(recipe) = config.recipe.filter(|_| config.target_modules.is_some()) {
            refuse!(InvalidConfig, "{}", both(recipe));
        }
        // `named`: by names of the user or a table, not a list of recognised paths.
        let (targets, named) = match &config.target_modules {
            Some(targets) if targets.is_empty() => {
                refuse!(
                    NoTargetModules,
                    "`target_modules` is empty: name at least one module, or leave it out to tune the norms"
                );
            }
            Some(Modules::Pattern(all)) if all.eq_ignore_ascii_case("all-linear") => {
                refuse!(
                    Unsupported,
                    "`target_modules: all-linear` is not implemented, since a VarStore does not know the classes of its \
                     modules: list their names"
                );
            }
            Some(targets) => (targets.clone(), true),
            None => match config.recipe {
                Some(recipe) => (recipe_targets(&tree, model_type, recipe)?, false),
                None => default_targets(&tree, model_type, norms)?,
            },
        };
        let rules = Rules::new(
            &targets,
            config.exclude_modules.as_ref(),
            config.modules_to_save.as_deref(),
        )?;
        let mut verdicts = BTreeMap::new();
        let (mut targeted, mut saved) = (Vec::new(), Vec::new());
        for path in tree.paths() {
            let verdict = rules.verdict(path)?;
            if verdict == Verdict::Targeted {
                targeted.push(path);
            }
            if rules.is_saved(path) {
                saved.push(path);
            }
            verdicts.insert(path, verdict);
        }
        let roots: HashSet<&str> = saved.iter().copied().collect();
        // The outermost saved module that is this one or around it.
        let saved_with = |path: &str| around(path).find_map(|outer| roots.get(outer).copied());
        for path in &targeted {
            if let Some(root) = saved_with(path) {
                return Err(in_both(path, root));
            }
        }
        if targeted.is_empty() {
            return Err(nothing_selected(&tree, &targets, &rules, &verdicts)?);
        }
        let excluded_any = verdicts.values().any(|v| *v == Verdict::Excluded);
        let kept_out = |path: &str| {
            matches!(verdicts[path], Verdict::Excluded | Verdict::Saved)
                || saved_with(path).is_some()
        };
        let mut chosen: HashMap<&str, (Role, &str)> = HashMap::new();
        for (roots, role) in [(&targeted, Role::Tuned), (&saved, Role::Whole)] {
            let units =
                roots.iter().flat_map(|root| tree.units(root).into_iter().map(|u| (*root, u)));
            for (root, path) in units {
                // A module inside a targeted container can be excluded; PEFT copies it with the container.
                if role == Role::Tuned {
                    if kept_out(path) {
                        continue;
                    }
                    if let Some(inner) = tree.leaves(path).find(|p| kept_out(p)) {
                        return Err(inseparable(path, inner));
                    }
                }
                // Outer modules come first.
                let wrapped = if role == Role::Whole { root } else { path };
                chosen.entry(path).or_insert((role, wrapped));
            }
        }
        let inside =
            |path: &str| path.match_indices('.').any(|(at, _)| chosen.contains_key(&path[..at]));
        let places = Places::of(&tree, model_type);
        let mut modules: Vec<SelectedModule> = chosen
            .iter()
            .filter(|(path, _)| !inside(path))
            .map(|(path, (role, wrapped))| SelectedModule {
                path: (*path).to_owned(),
                role: *role,
                wrapped: (*wrapped).to_owned(),
                variables: tree.tensors_below(path).map(|v| v.name.clone()).collect(),
                place: places.place(path).filter(|_| *role == Role::Tuned),
            })
            .collect();
        modules.sort_by(|a, b| natural_cmp(&a.path, &b.path));
        if modules.iter().all(|module| module.role == Role::Whole) {
            return Err(nothing_selected(&tree, &targets, &rules, &verdicts)?);
        }
        for module in &modules {
            tree.tensors_below(&module.path).try_for_each(check_kind)?;
        }
        let excludes = config.exclude_modules.clone().filter(|_| excluded_any);
        let (targets, excludes) = exportable(&tree, &modules, config, targets, named, excludes)?;
        let idle_excludes =
            !excluded_any && config.exclude_modules.as_ref().is_some_and(|m| !m.is_empty());
        let saves = config.modules_to_save.clone().map(|names| separable(&tree, names));
        let carried = BTreeSet::new();
        let unused = None;
        Ok(Selection { modules, targets, excludes, saves, idle_excludes, carried, unused })
    }

    /// The selected modules, in natural order of their paths (`layers.2` before `layers.10`).
    pub fn modules(&self) -> &[SelectedModule] {
        &self.modules
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = SelectedTensor> + '_ {
        self.modules.iter().flat_map(SelectedModule::tensors)
    }

    /// The full names of all selected variables, in the order of the modules.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().flat_map(|module| module.variables.iter().map(String::as_str))
    }

    /// The same with variables of the base that a saved adapter brings along.
    pub(crate) fn with_carried(mut self, names: BTreeSet<String>) -> Self {
        for name in &names {
            let path = name.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
            let wrapped = path.clone();
            let (variables, place) = (vec![name.clone()], None);
            self.modules.push(SelectedModule {
                path,
                role: Role::Whole,
                variables,
                place,
                wrapped,
            });
        }
        self.modules.sort_by(|a, b| natural_cmp(&a.path, &b.path));
        self.carried = names;
        self
    }

    /// True for a variable of the base that a saved adapter brings along.
    pub(crate) fn is_carried(&self, name: &str) -> bool {
        self.carried.contains(name)
    }

    /// The modules that are trained.
    pub(crate) fn trained(&self) -> impl Iterator<Item = &SelectedModule> {
        self.modules.iter().filter(|module| !module.variables.iter().any(|v| self.is_carried(v)))
    }

    /// True if `exclude_modules` was given but matches no module: most likely a mistake, of which PEFT warns.
    pub fn excludes_nothing(&self) -> bool {
        self.idle_excludes
    }

    /// `config` with explicit `target_modules` that make PEFT select exactly these modules, without a warning.
    ///
    /// Keeps the settings of the user if they do so; else derives sorted names.
    pub fn export_config(&self, config: &LnTuningConfig) -> LnTuningConfig {
        LnTuningConfig {
            target_modules: Some(self.targets.clone()),
            exclude_modules: self.excludes.clone(),
            modules_to_save: self.saves.clone(),
            recipe: None,
            ..config.clone()
        }
    }
}

fn nothing_selected(
    tree: &Tree,
    targets: &Modules,
    rules: &Rules,
    verdicts: &BTreeMap<&str, Verdict>,
) -> Result<Error> {
    let mut matching = 0;
    for path in tree.paths() {
        matching += usize::from(rules.is_targeted(path)?);
    }
    if matching > 0 {
        let saved = verdicts.values().filter(|v| **v == Verdict::Saved).count();
        return Ok(refusal!(
            AllModulesExcluded,
            "all {matching} modules that `target_modules` matches are excluded by `exclude_modules`{}: exclude fewer \
             modules",
            if saved > 0 { " or listed in `modules_to_save`" } else { "" }
        ));
    }
    let wanted: Vec<&str> = match targets {
        Modules::Pattern(pattern) => vec![pattern],
        Modules::List(names) => names.iter().map(String::as_str).collect(),
    };
    let with_tensors = tree.paths().filter(|path| tree.tensors(path).next().is_some());
    Ok(refusal!(
        NoMatchingModules,
        "no module matches `target_modules` {}. The nearest are {}. A string is a regular expression for the whole \
         path, a list entry matches the path or its end",
        listed(&wanted),
        nearest(&wanted, &with_tensors.collect::<Vec<_>>())
    ))
}

fn inseparable(outer: &str, inner: &str) -> Error {
    refusal!(
        Unsupported,
        "'{inner}' cannot be excluded from '{outer}', which has tensors of its own and is therefore tuned as a whole, \
         as in PEFT: target the modules in it, or exclude all of it"
    )
}

fn in_both(path: &str, saved: &str) -> Error {
    refusal!(
        Unsupported,
        "'{path}' is matched by `target_modules`, and by `modules_to_save` through '{saved}', whose path ends in one of \
         its names; PEFT cannot wrap it twice. Write more of the path in `modules_to_save`, or leave the module out of \
         `target_modules`"
    )
}

fn check_kind(variable: &VariableInfo) -> Result<()> {
    if variable.is_parameter && !is_float(variable.kind) {
        refuse!(
            UnsupportedVariable,
            "'{}' was selected but its kind is {:?}, expected Float, Double, Half or BFloat16: exclude its module \
             with `exclude_modules`",
            variable.name,
            variable.kind
        );
    }
    Ok(())
}
