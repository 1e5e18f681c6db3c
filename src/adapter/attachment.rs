//! Adapters attached to variables: the storage that each variable uses now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use crate::adapter::gradients::undefine;
use crate::adapter::options::AdapterOptions;
use crate::adapter::samples::Samples;
use crate::adapter::stack::Stack;
use crate::adapter::variables::{Variable, Variables};
use crate::adapter::weights::Adapter;
use crate::error::{refusal, refuse, Error, Result};
use crate::mixed::Pass;
use crate::names::nearest::listed;
use crate::pretrained::origin::Described;

/// The state that a model handle and its optimisers share.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) variables: Variables,
    /// The model of the directory from which the variables were loaded, if any.
    pub(crate) model: Option<Arc<Described>>,
    /// The storage without adapters, for every variable that an adapter replaces.
    pub(super) base: HashMap<usize, Tensor>,
    /// A few elements of every frozen variable, as they were when an adapter was attached.
    pub(crate) samples: Samples,
    pub(crate) adapters: BTreeMap<String, Adapter>,
    /// The adapter that is used while adapters are enabled.
    pub(crate) active: Option<String>,
    pub(crate) enabled: bool,
    /// The merged adapter.
    pub(crate) merged: Option<String>,
    /// The adapter whose storage the variables use now.
    pub(super) shown: Option<String>,
    /// The last adapter that trained, by its number: graphs may need its weights.
    graphs_of: Option<u64>,
    /// The vectors of the adapters that batches have named; made anew where the base's variables are others.
    pub(super) stack: Option<Stack>,
    /// The numbers of adapters that train in batches whose rows name them.
    pub(super) trained_by_name: HashSet<u64>,
    /// Such batches, since the last backward pass.
    pub(crate) passes: Vec<Pass>,
}

impl Attachment {
    pub(crate) fn new(variables: Variables, model: Option<Arc<Described>>) -> Self {
        Attachment {
            variables,
            model,
            base: HashMap::new(),
            samples: Samples::default(),
            adapters: BTreeMap::new(),
            active: None,
            enabled: true,
            merged: None,
            shown: None,
            graphs_of: None,
            stack: None,
            trained_by_name: HashSet::new(),
            passes: Vec::new(),
        }
    }

    /// The model type that these options name, or that of the directory.
    pub(crate) fn model_type<'a>(&'a self, options: &'a AdapterOptions) -> Option<&'a str> {
        let known = self.model.as_ref().and_then(|model| model.model_type());
        options.model_type.as_deref().or(known)
    }

    /// Removes every adapter. The variables keep the storage that they use now.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.hide_gradients()?;
        self.outdate_all()?;
        self.adapters.clear();
        self.base.clear();
        self.stack = None;
        self.passes.clear();
        (self.active, self.merged, self.shown) = (None, None, None);
        self.enabled = true;
        self.forget_requires_grad()
    }

    /// The adapter of this name.
    pub(crate) fn adapter(&self, name: &str) -> Result<&Adapter> {
        self.adapters.get(name).ok_or_else(|| self.unknown(name))
    }

    /// The adapter of this name, to read its weights: what user code wrote into the live ones is theirs.
    pub(crate) fn current(&self, name: &str) -> Result<&Adapter> {
        let adapter = self.adapter(name)?;
        adapter.flat.adopt_written()?;
        Ok(adapter)
    }

    /// The adapter of this name, to change its weights: what user code wrote into the live ones is theirs.
    pub(crate) fn adapter_mut(&mut self, name: &str) -> Result<&mut Adapter> {
        self.current(name)?;
        Ok(self.adapters.get_mut(name).expect("the name was just found"))
    }

    /// An adapter, and the variables whose `.grad()` is that of its slots: none unless the model uses it.
    pub(crate) fn graded(&mut self, name: &str) -> Result<(&mut Adapter, Vec<&Tensor>)> {
        self.adapter(name)?;
        let shown = self.shown.as_deref() == Some(name);
        let adapter = self.adapters.get_mut(name).expect("the name was just found");
        let leaves = adapter.slot_variables.iter().filter(|_| shown);
        let leaves = leaves.map(|variable| &self.variables.get(*variable).tensor).collect();
        Ok((adapter, leaves))
    }

    /// The variables that an adapter trains, in the order of its slots.
    pub(crate) fn trained(&self, name: &str) -> Result<impl Iterator<Item = &Variable>> {
        let variables = self.adapter(name)?.slot_variables.iter();
        Ok(variables.map(|variable| self.variables.get(*variable)))
    }

    /// Refuses the name of an existing adapter.
    pub(crate) fn check_new(&self, name: &str) -> Result<()> {
        if self.adapters.contains_key(name) {
            refuse!(
                DuplicateAdapter,
                "an adapter '{name}' is attached already: delete it first, or choose another name"
            );
        }
        Ok(())
    }

    /// Refuses an action, `doing`, that is not possible while an adapter is merged.
    pub(crate) fn check_unmerged(&self, doing: &str) -> Result<()> {
        if let Some(merged) = &self.merged {
            refuse!(
                InvalidState,
                "cannot {doing}: adapter '{merged}' is merged. Call `unmerge_adapter` first"
            );
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&String> = self.adapters.keys().collect();
        let known = if known.is_empty() { "none".to_owned() } else { listed(&known) };
        refusal!(UnknownAdapter, "there is no adapter '{name}'; attached: {known}")
    }

    /// The storage that a variable has without adapters.
    pub(crate) fn base_data(&self, variable: usize) -> Result<Tensor> {
        let variable = self.variables.get(variable).copy_of.unwrap_or(variable);
        match self.base.get(&variable) {
            Some(data) => Ok(data.shallow_clone()),
            None => Ok(self.variables.get(variable).tensor.f_detach()?),
        }
    }

    /// Adds an adapter. The model does not use it before it is active.
    pub(crate) fn insert(&mut self, name: &str, adapter: Adapter) -> Result<()> {
        let mut missing = Vec::new();
        let replaced = adapter.storages().map(|(variable, _)| variable);
        for variable in replaced.chain(adapter.kept.iter().map(|(copy, _)| *copy)) {
            if !self.base.contains_key(&variable) {
                let data = self.base_data(variable)?;
                // Without adapters, a copy is tied, and so empty.
                let data = match self.variables.get(variable).copy_of {
                    Some(_) => Tensor::f_empty([0], (data.f_kind()?, data.device()))?,
                    None => data,
                };
                missing.push((variable, data));
            }
        }
        for (variable, data) in &missing {
            if self.variables.get(*variable).is_new {
                // Its former gradient is not one of the adapter.
                undefine(std::iter::once(&self.variables.get(*variable).tensor))?;
                self.variables.freeze(*variable)?;
                self.samples.remember(&[(*variable, data)])?;
            }
        }
        if !missing.is_empty() {
            self.stack = None;
        }
        self.base.extend(missing);
        self.adapters.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// Removes an adapter, which must not be in use.
    pub(crate) fn remove(&mut self, name: &str) {
        self.adapters.remove(name);
    }

    /// The adapter that the model must use in the present state.
    fn wanted(&self) -> Option<String> {
        match (&self.merged, self.enabled) {
            (Some(merged), _) => Some(merged.clone()),
            (None, true) => self.active.clone(),
            (None, false) => None,
        }
    }

    /// Updates variables and gradients to the present state: a pointer swap per tensor of the two adapters involved.
    pub(crate) fn apply(&mut self) -> Result<()> {
        let wanted = self.wanted();
        let changes = wanted != self.shown;
        if changes {
            self.hide_gradients()?;
            let next = wanted.as_ref().and_then(|name| self.adapters.get(name));
            let before = self.shown.as_ref().and_then(|name| self.adapters.get(name));
            let same_slots = before.map(|a| &a.slot_variables) == next.map(|a| &a.slot_variables);
            if let Some(adapter) = before {
                if let Some(stack) = &mut self.stack {
                    stack.outdate(adapter.id);
                }
                let mut stays = vec![false; self.variables.len()];
                if let Some(next) = next {
                    next.all_storages(&self.base).for_each(|(variable, _)| stays[variable] = true);
                }
                let go_on = same_slots && self.trains(next);
                for (variable, _) in adapter.all_storages(&self.base) {
                    let tensor = &self.variables.get(variable).tensor;
                    if !go_on && tensor.requires_grad() {
                        let _ = tensor.f_set_requires_grad(false)?;
                    }
                    if !stays[variable] {
                        self.variables.set_data(variable, &self.base[&variable])?;
                    }
                }
            }
            if let Some(adapter) = next.filter(|_| !same_slots) {
                // Those of the base are not the adapter's.
                let leaves = adapter.slot_variables.iter().map(|v| self.variables.get(*v));
                undefine(leaves.map(|variable| &variable.tensor))?;
            }
            self.shown = wanted;
        }
        self.apply_shown(changes)
    }

    /// Lets the variables use the storage of the adapter in use, if that `changes`. Only the parameters of one that is
    /// trainable require a gradient.
    fn apply_shown(&mut self, changes: bool) -> Result<()> {
        let shown = self.shown.clone();
        let Some((name, adapter)) =
            shown.as_ref().and_then(|name| Some((name, self.adapters.get(name)?)))
        else {
            return Ok(());
        };
        let (train, id) = (self.trains(Some(adapter)), adapter.id);
        // The base and a frozen adapter may come between a forward pass and its backward pass; this one may not.
        let renew = train && self.graphs_of != Some(id);
        if renew {
            // No tuned weight is complex.
            let spare = (Kind::ComplexFloat, adapter.flat.master().device());
            let spare = Tensor::f_empty([0], spare)?;
            for (variable, storage) in adapter.all_storages(&self.base) {
                self.variables.renew(variable, storage, &spare)?;
            }
        } else if changes {
            for (variable, storage) in adapter.all_storages(&self.base) {
                self.variables.set_data(variable, storage)?;
            }
        }
        let (adapter, leaves) = self.graded(name)?;
        for leaf in &leaves {
            if leaf.requires_grad() != train {
                let _ = leaf.f_set_requires_grad(train)?;
            }
        }
        adapter.gradients.show(&leaves)?;
        if renew {
            self.outdate_all()?;
            self.graphs_of = Some(id);
        }
        Ok(())
    }

    /// True if this adapter trains while the model uses it.
    fn trains(&self, adapter: Option<&Adapter>) -> bool {
        self.merged.is_none() && adapter.is_some_and(|adapter| adapter.trainable)
    }

    /// Marks everything that an adapter replaces as changed, for graphs made before.
    fn outdate_all(&mut self) -> Result<()> {
        self.base.keys().try_for_each(|variable| self.variables.outdate(*variable))
    }

    /// Marks weights of an adapter as changed, for graphs made before.
    pub(crate) fn outdate(&mut self, name: &str, changed: impl Fn(usize) -> bool) -> Result<()> {
        let adapter = self.adapters.get(name).filter(|adapter| self.graphs_of == Some(adapter.id));
        let Some(adapter) = adapter else { return Ok(()) };
        let slots = adapter.slot_variables.iter().enumerate();
        let mut slots = slots.filter(|(slot, _)| changed(*slot));
        slots.try_for_each(|(_, variable)| self.variables.outdate(*variable))
    }

    /// Keeps the gradients of the adapter in use for its return, and no other adapter takes them over.
    pub(super) fn hide_gradients(&mut self) -> Result<()> {
        match self.shown.clone().filter(|name| self.adapters.contains_key(name)) {
            Some(name) => {
                let (adapter, leaves) = self.graded(&name)?;
                adapter.gradients.hide(&adapter.flat, &leaves)
            }
            None => Ok(()),
        }
    }

    /// Freezes every variable.
    pub(crate) fn freeze_all(&self) -> Result<()> {
        for variable in self.variables.iter().filter(|v| v.tensor.requires_grad()) {
            let _ = variable.tensor.f_set_requires_grad(false)?;
        }
        Ok(())
    }

    /// Sets every `requires_grad` to the present state again, after changes by user code. New variables become part of
    /// the frozen base.
    pub(crate) fn restore_requires_grad(&mut self) -> Result<()> {
        self.freeze_all()?;
        self.sync()?;
        self.apply_shown(false)
    }

    /// Restores the `requires_grad` that every variable had before an adapter was attached.
    pub(crate) fn forget_requires_grad(&self) -> Result<()> {
        for variable in self.variables.iter().filter(|variable| !variable.is_new) {
            if variable.tensor.requires_grad() != variable.required_grad {
                let _ = variable.tensor.f_set_requires_grad(variable.required_grad)?;
            }
        }
        Ok(())
    }
}

/// Locks the state, even after a thread that held it has panicked.
pub(crate) fn lock(attachment: &Mutex<Attachment>) -> MutexGuard<'_, Attachment> {
    attachment.lock().unwrap_or_else(PoisonError::into_inner)
}
