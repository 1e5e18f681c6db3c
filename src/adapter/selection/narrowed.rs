//! A selection made smaller: to some layers, to what the model uses.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::export::exportable;
use super::layers::{layer_of, Layers};
use super::rules::{with_head_names, Rules};
use super::selected::{Role, SelectedModule};
use super::tree::{around, Tree};
use super::unused::{UnusedModule, Usage};
use super::Selection;
use crate::adapter::config::{LnTuningConfig, Modules};
use crate::error::{refusal, refuse, Error, Result};
use crate::names::nearest::sample;
use crate::names::pattern::matches_suffix;
use crate::pretrained::Head;
use crate::storage::info::VariableInfo;

impl Selection {
    /// Of the tuned modules only those in these layers: in each stack of layers, which is counted by the first number
    /// in its paths. As with `layers_to_transform` of PEFT's other methods, norms outside of layers are left out, such
    /// as the final one. Modules in `modules_to_save` stay. `variables` and `config` are those of [`new`](Self::new).
    ///
    /// # Errors
    /// `InvalidArgument` for a band that is empty or reaches beyond the last layer; `NoMatchingModules` if no tuned
    /// module is in it.
    pub fn in_layers(
        &self,
        variables: &[VariableInfo],
        config: &LnTuningConfig,
        layers: Layers,
    ) -> Result<Self> {
        let tree = Tree::of(variables);
        let tuned = self.modules.iter().filter(|module| module.role == Role::Tuned);
        let stacks: BTreeSet<&str> =
            tuned.clone().filter_map(|module| Some(layer_of(&module.path)?.0)).collect();
        let numbers = stacks.iter().flat_map(|stack| tree.numbered(stack));
        let last = numbers.filter_map(|number| number.parse::<usize>().ok()).max();
        let Some(last) = last else {
            refuse!(
                NoMatchingModules,
                "`layers` is {layers}, and no selected module is in a numbered layer: {}",
                sample(tuned.map(|module| module.path.as_str()))
            );
        };
        layers.check(last + 1)?;
        let is_in = |path: &str| layer_of(path).is_some_and(|(_, layer)| layers.has(layer));
        let mut modules = self.modules.clone();
        modules.retain(|module| module.role == Role::Whole || is_in(&module.path));
        if !modules.iter().any(|module| module.role == Role::Tuned) {
            refuse!(
                NoMatchingModules,
                "no selected module is in the layers {layers} of {}: {}",
                last + 1,
                sample(tuned.map(|module| module.path.as_str()))
            );
        }
        let config = &with_head_names(config);
        let own = self.clone();
        let (targets, excludes) =
            exportable(&tree, &modules, config, own.targets, true, own.excludes)?;
        Ok(Selection { modules, targets, excludes, ..self.clone() })
    }

    /// The same without the tuned modules that get no gradient in the model of this `config.json` with this head, such
    /// as the last layers of llava's image tower, whose hidden states it does not read: [`unused`](Self::unused) names
    /// them. `variables` and `config` are those of [`new`](Self::new).
    ///
    /// # Errors
    /// `NoGradient` if all modules that an entry of `target_modules` matches are such, or all tuned modules.
    pub fn used_by(
        &self,
        variables: &[VariableInfo],
        config: &LnTuningConfig,
        model_config: &Value,
        head: Head,
    ) -> Result<Self> {
        let (tree, usage) = (Tree::of(variables), Usage::of(model_config, head));
        let (mut modules, mut unused) = (Vec::new(), Vec::new());
        for module in &self.modules {
            let reason = usage.unused(&tree, &module.path).filter(|_| module.role == Role::Tuned);
            match reason {
                Some(reason) => unused.push(UnusedModule { path: module.path.clone(), reason }),
                None => modules.push(module.clone()),
            }
        }
        if unused.is_empty() {
            return Ok(Selection { unused: Some(unused), ..self.clone() });
        }
        let tuned = || modules.iter().filter(|module| module.role == Role::Tuned);
        let entries = match &config.target_modules {
            Some(Modules::List(entries)) => &entries[..],
            _ => &[],
        };
        let is_of = |entry: &String, path: &str| around(path).any(|p| matches_suffix(p, entry));
        for entry in entries {
            let first = unused.iter().find(|module| is_of(entry, &module.path));
            if let Some(first) = first.filter(|_| !tuned().any(|m| is_of(entry, &m.path))) {
                return Err(without_gradient(&format!("'{entry}' in `target_modules`"), first));
            }
        }
        if tuned().next().is_none() {
            return Err(without_gradient("every selected module", &unused[0]));
        }
        let config = &with_head_names(config);
        let left_out = unused.iter().map(|module| module.path.clone());
        let excludes = match self.excludes.clone() {
            None => Some(Modules::list(left_out)),
            Some(Modules::List(names)) => Some(Modules::list(names.into_iter().chain(left_out))),
            Some(pattern) => Some(pattern),
        };
        let targets = self.targets.clone();
        let (targets, excludes) = exportable(&tree, &modules, config, targets, true, excludes)?;
        Ok(Selection { modules, targets, excludes, unused: Some(unused), ..self.clone() })
    }

    /// The modules that were left out by [`used_by`](Self::used_by), in natural order of their paths.
    pub fn unused(&self) -> &[UnusedModule] {
        self.unused.as_deref().unwrap_or_default()
    }

    /// The selection of the same modules under the names of these variables, to which `back` leads from the names that
    /// it has; `None` if a module is no longer one. `config` is that of the selection.
    pub(crate) fn moved(
        &self,
        variables: &[VariableInfo],
        config: &LnTuningConfig,
        back: &HashMap<String, &str>,
    ) -> Result<Option<Self>> {
        let tree = Tree::of(variables);
        let mut modules = Vec::with_capacity(self.modules.len());
        for module in &self.modules {
            let variables: Option<Vec<&str>> =
                module.variables.iter().map(|name| back.get(name).copied()).collect();
            let Some(variables) = variables else { return Ok(None) };
            let path = |(there, here): (&String, &&str)| {
                here.strip_suffix(&there[module.path.len()..]).map(str::to_owned)
            };
            let mut paths = module.variables.iter().zip(&variables).map(path);
            let Some(path) = paths.next().flatten() else { return Ok(None) };
            if !paths.all(|other| other.as_ref() == Some(&path)) {
                return Ok(None);
            }
            let wrapped = path.strip_suffix(&module.path[module.wrapped.len()..]);
            let (wrapped, place) = (wrapped.unwrap_or(&path).to_owned(), module.place);
            let variables = variables.into_iter().map(str::to_owned).collect();
            modules.push(SelectedModule { path, role: module.role, variables, place, wrapped });
        }
        let mut config = with_head_names(config);
        let whole = modules.iter().filter(|module| module.role == Role::Whole);
        let whole: BTreeSet<&str> = whole.map(|module| module.wrapped.as_str()).collect();
        let saves = config.modules_to_save.as_deref();
        let rules = Rules::new(&self.targets, None, saves)?;
        let saved: BTreeSet<&str> = tree.paths().filter(|path| rules.is_saved(path)).collect();
        let is_outer =
            |path: &&&str| !around(path).any(|outer| outer != **path && saved.contains(outer));
        if !saved.iter().filter(is_outer).eq(&whole) {
            config.modules_to_save = Some(whole.into_iter().map(str::to_owned).collect());
        }
        let (targets, excludes) = (self.targets.clone(), self.excludes.clone());
        let (targets, excludes) = exportable(&tree, &modules, &config, targets, true, excludes)?;
        let saves = config.modules_to_save.filter(|saves| !saves.is_empty());
        Ok(Some(Selection { modules, targets, excludes, saves, ..self.clone() }))
    }

    /// True if modules without a gradient were asked for, and left out.
    pub(crate) fn is_without_unused(&self) -> bool {
        self.unused.is_some()
    }

    /// The selection of the same modules among more variables, which may match the settings too.
    pub(crate) fn among(
        &self,
        variables: &[VariableInfo],
        config: &LnTuningConfig,
    ) -> Result<Self> {
        let (tree, own) = (Tree::of(variables), self.clone());
        let (targets, excludes) =
            exportable(&tree, &self.modules, config, own.targets, true, own.excludes)?;
        Ok(Selection { targets, excludes, ..self.clone() })
    }
}

fn without_gradient(selected: &str, first: &UnusedModule) -> Error {
    let UnusedModule { path, reason } = first;
    refusal!(
        NoGradient,
        "{selected} gets no gradient, such as '{path}': {reason}. Leave it out, or give another model"
    )
}
