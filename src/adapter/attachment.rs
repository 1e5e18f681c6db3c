//! Adapters attached to variables: the storage that each variable uses now, and changes by user code.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use crate::adapter::gradients::undefine;
use crate::adapter::variables::{Changes, Variable, Variables};
use crate::adapter::weights::Adapter;
use crate::error::{refusal, refuse, Error, Result};

/// The state that a model handle and its optimisers share.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) variables: Variables,
    /// The model type of the directory from which the variables were loaded, if any.
    pub(crate) model_type: Option<String>,
    /// The storage without adapters, for every variable that an adapter replaces.
    base: HashMap<usize, Tensor>,
    pub(crate) adapters: BTreeMap<String, Adapter>,
    /// The adapter that is used while adapters are enabled.
    pub(crate) active: Option<String>,
    pub(crate) enabled: bool,
    /// The merged adapter.
    pub(crate) merged: Option<String>,
    /// The adapter whose storage the variables use now.
    shown: Option<String>,
    /// The last adapter that trained, by its number: graphs may need its weights.
    graphs_of: Option<u64>,
}

impl Attachment {
    pub(crate) fn new(variables: Variables, model_type: Option<String>) -> Self {
        Attachment {
            variables,
            model_type,
            base: HashMap::new(),
            adapters: BTreeMap::new(),
            active: None,
            enabled: true,
            merged: None,
            shown: None,
            graphs_of: None,
        }
    }

    /// Removes every adapter. The variables keep the storage that they use now.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.hide_gradients()?;
        self.outdate_all()?;
        self.adapters.clear();
        self.base.clear();
        (self.active, self.merged, self.shown) = (None, None, None);
        self.enabled = true;
        self.forget_requires_grad()
    }

    /// The adapter of this name.
    pub(crate) fn adapter(&self, name: &str) -> Result<&Adapter> {
        self.adapters.get(name).ok_or_else(|| self.unknown(name))
    }

    pub(crate) fn adapter_mut(&mut self, name: &str) -> Result<&mut Adapter> {
        if !self.adapters.contains_key(name) {
            return Err(self.unknown(name));
        }
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
        let known: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join("', '") };
        refusal!(UnknownAdapter, "there is no adapter '{name}'; attached: '{known}'")
    }

    /// The storage that a variable has without adapters.
    pub(crate) fn base_data(&self, variable: usize) -> Result<Tensor> {
        match self.base.get(&variable) {
            Some(data) => Ok(data.shallow_clone()),
            None => Ok(self.variables.get(variable).tensor.f_detach()?),
        }
    }

    /// Adds an adapter. The model does not use it before it is active.
    pub(crate) fn insert(&mut self, name: &str, adapter: Adapter) -> Result<()> {
        let mut missing = Vec::new();
        for (variable, _) in adapter.storages() {
            if !self.base.contains_key(&variable) {
                missing.push((variable, self.base_data(variable)?));
            }
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
        if wanted != self.shown {
            self.hide_gradients()?;
            if let Some(adapter) = self.shown.as_ref().and_then(|name| self.adapters.get(name)) {
                let mut stays = vec![false; self.variables.len()];
                if let Some(next) = wanted.as_ref().and_then(|name| self.adapters.get(name)) {
                    next.storages().for_each(|(variable, _)| stays[variable] = true);
                }
                for (variable, _) in adapter.storages() {
                    let tensor = &self.variables.get(variable).tensor;
                    if tensor.requires_grad() {
                        let _ = tensor.f_set_requires_grad(false)?;
                    }
                    if !stays[variable] {
                        self.variables.set_data(variable, &self.base[&variable])?;
                    }
                }
            }
            if let Some(adapter) = wanted.as_ref().and_then(|name| self.adapters.get(name)) {
                let before = self.shown.as_ref().and_then(|name| self.adapters.get(name));
                if before.is_none_or(|before| before.slot_variables != adapter.slot_variables) {
                    // Those of the base are not the adapter's.
                    let leaves = adapter.slot_variables.iter().map(|v| self.variables.get(*v));
                    undefine(leaves.map(|variable| &variable.tensor))?;
                }
                for (variable, storage) in adapter.storages() {
                    self.variables.set_data(variable, storage)?;
                }
            }
            self.shown = wanted;
        }
        self.apply_requires_grad()
    }

    /// Only the parameters of a trainable adapter in use require a gradient.
    fn apply_requires_grad(&mut self) -> Result<()> {
        let Some(name) = self.shown.clone().filter(|name| self.adapters.contains_key(name)) else {
            return Ok(());
        };
        let merged = self.merged.is_some();
        let (adapter, leaves) = self.graded(&name)?;
        let train = adapter.trainable && !merged;
        for leaf in &leaves {
            if leaf.requires_grad() != train {
                let _ = leaf.f_set_requires_grad(train)?;
            }
        }
        adapter.gradients.show(&leaves)?;
        let id = adapter.id;
        if train && self.graphs_of != Some(id) {
            // The base and a frozen adapter may come between a forward pass and its backward pass; this one may not.
            let adapter = &self.adapters[&name];
            // No tuned weight is complex.
            let spare = (Kind::ComplexFloat, adapter.flat.master().device());
            let spare = Tensor::f_empty([0], spare)?;
            for (slot, variable) in adapter.slot_variables.iter().enumerate() {
                self.variables.renew(*variable, adapter.flat.view(slot), &spare)?;
            }
            self.outdate_all()?;
            self.graphs_of = Some(id);
        }
        Ok(())
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
    fn hide_gradients(&mut self) -> Result<()> {
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

    /// Sets every `requires_grad` to the present state again, after changes by user code.
    pub(crate) fn restore_requires_grad(&mut self) -> Result<()> {
        self.freeze_all()?;
        self.apply_requires_grad()
    }

    /// Restores the `requires_grad` that every variable had before an adapter was attached.
    pub(crate) fn forget_requires_grad(&self) -> Result<()> {
        for variable in self.variables.iter() {
            if variable.tensor.requires_grad() != variable.required_grad {
                let _ = variable.tensor.f_set_requires_grad(variable.required_grad)?;
            }
        }
        Ok(())
    }

    /// Checks for changes to the variables by user code since the last call.
    ///
    /// Follows another kind or device of the model, and writes to the adapter's weights by another optimiser.
    /// Refuses an overwritten base, since the adapter belongs to the earlier one. Then nothing changes.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let changes = self.variables.changes();
        if changes.moved.is_empty() && changes.written.is_empty() {
            return Ok(());
        }
        let in_use = match (&self.merged, &self.shown) {
            (None, Some(name)) => self.adapters[name].slot_variables.clone(),
            _ => Vec::new(),
        };
        if let Some(base) = changes.written.iter().find(|v| !in_use.contains(v)) {
            return Err(self.base_changed(
                *base,
                "was overwritten (vs.load, vs.copy or an in-place operation?)",
            ));
        }
        if !changes.moved.is_empty() {
            self.follow_move(&changes)?;
        }
        if let Some(name) = self.shown.clone().filter(|_| self.merged.is_none()) {
            let adapter = self.adapter_mut(&name)?;
            for slot in 0..adapter.slot_variables.len() {
                let variable = adapter.slot_variables[slot];
                if changes.written.contains(&variable) && !changes.moved.contains(&variable) {
                    adapter.flat.adopt(slot)?;
                }
            }
        }
        self.variables.accept(&changes);
        Ok(())
    }

    fn base_changed(&self, variable: usize, what: &str) -> Error {
        let name = &self.variables.get(variable).name;
        refusal!(
            BaseChanged,
            "the frozen variable '{name}' {what} after an adapter was attached, but the adapter belongs to the former \
             weights. Load the base before attaching; to continue with the present weights of the VarStore, drop this \
             LnTuningModel and attach a new one"
        )
    }

    /// Moves every adapter and the stored base to the present kinds and device of the variables.
    fn follow_move(&mut self, changes: &Changes) -> Result<()> {
        let in_use: HashMap<usize, Tensor> =
            match self.shown.as_ref().and_then(|name| self.adapters.get(name)) {
                Some(adapter) => adapter.storages().map(|(v, t)| (v, t.shallow_clone())).collect(),
                None => HashMap::new(),
            };
        // Values that differ from the old ones in the new kind were written by user code.
        let mut foreign: HashMap<usize, Tensor> = HashMap::new();
        for index in changes.moved.iter().filter(|v| self.base.contains_key(v)) {
            let present = self.variables.get(*index).tensor.f_detach()?;
            let known = in_use.get(index).unwrap_or(&self.base[index]);
            if present.size() != known.size() {
                return Err(self.base_changed(*index, "was given another shape"));
            }
            let (kind, device) = (present.f_kind()?, present.device());
            if !present.f_equal(&known.f_to_kind(kind)?.f_to_device(device)?)? {
                if !in_use.contains_key(index) || self.merged.is_some() {
                    return Err(self.base_changed(*index, "was given other values"));
                }
                foreign.insert(*index, present);
            }
        }
        self.hide_gradients()?;
        let mut base = HashMap::new();
        for (index, data) in &self.base {
            let present = self.variables.get(*index).tensor.f_detach()?;
            base.insert(*index, data.f_to_device(present.device())?.f_to_kind(present.f_kind()?)?);
        }
        let mut storages = Vec::with_capacity(self.adapters.len());
        for (name, adapter) in &self.adapters {
            storages.push(adapter.relocated(name, &base)?);
        }
        for (adapter, storage) in self.adapters.values_mut().zip(storages) {
            adapter.set_storage(storage);
        }
        self.base = base;
        self.variables.accept(changes);
        let Some(name) = self.shown.take() else { return Ok(()) };
        let adapter = self.adapter_mut(&name)?;
        for slot in 0..adapter.slot_variables.len() {
            if let Some(value) = foreign.get(&adapter.slot_variables[slot]) {
                adapter.flat.set_value(slot, value)?;
            }
        }
        let requires_grad: Vec<bool> =
            self.trained(&name)?.map(|variable| variable.tensor.requires_grad()).collect();
        let adapter = &self.adapters[&name];
        for (variable, storage) in adapter.storages() {
            self.variables.set_data(variable, storage)?;
        }
        for (variable, required) in adapter.slot_variables.iter().zip(requires_grad) {
            let _ = self.variables.get(*variable).tensor.f_set_requires_grad(required)?;
        }
        self.shown = Some(name.clone());
        let (adapter, leaves) = self.graded(&name)?;
        adapter.gradients.show(&leaves)
    }

    /// Refuses an optimiser step on this adapter unless exactly its weights are trainable.
    pub(crate) fn check_trainable(&self, name: &str) -> Result<()> {
        let adapter = self.adapter(name)?;
        if let Some(merged) = &self.merged {
            refuse!(
                InvalidState,
                "adapter '{merged}' is merged, so nothing trains: call `unmerge_adapter` first"
            );
        }
        if !self.enabled {
            refuse!(
                InvalidState,
                "adapters are disabled, so nothing trains: drop the guard of `disable` first"
            );
        }
        if self.active.as_deref() != Some(name) {
            refuse!(
                InvalidState,
                "adapter '{name}' is not active ('{}' is), so it gets no gradient: call `set_adapter(\"{name}\")` first",
                self.active.as_deref().unwrap_or("none")
            );
        }
        if !adapter.trainable {
            refuse!(
                InvalidState,
                "adapter '{name}' is frozen (loaded for inference?): call `set_requires_grad(\"{name}\", true)` to \
                 train it"
            );
        }
        if let Some(frozen) = self.trained(name)?.find(|v| !v.tensor.requires_grad()) {
            refuse!(
                InvalidState,
                "'{}' is selected but no longer requires a gradient (vs.freeze?): call \
                 `set_requires_grad(\"{name}\", true)`",
                frozen.name
            );
        }
        let mut trains = vec![false; self.variables.len()];
        adapter.slot_variables.iter().for_each(|variable| trains[*variable] = true);
        let thawed = |v: &&Variable| v.tensor.requires_grad() && !trains[v.tied_to];
        if let Some(variable) = self.variables.iter().find(thawed) {
            refuse!(
                InvalidState,
                "'{}' belongs to the frozen base but requires a gradient (vs.unfreeze?): call \
                 `set_requires_grad(\"{name}\", true)` to freeze the base again",
                variable.name
            );
        }
        Ok(())
    }
}

/// Locks the state, even after a thread that held it has panicked.
pub(crate) fn lock(attachment: &Mutex<Attachment>) -> MutexGuard<'_, Attachment> {
    attachment.lock().unwrap_or_else(PoisonError::into_inner)
}
