//! Changes to the variables by user code: followed, or refused.

use std::collections::{HashMap, HashSet};

use tch::Tensor;

use crate::adapter::attachment::Attachment;
use crate::adapter::samples::is_cast;
use crate::adapter::variables::{Changes, Variables};
use crate::error::{refusal, Error, Result};
use crate::storage::finite::check_cast;

impl Attachment {
    /// Checks for changes to the variables by user code since the last call.
    ///
    /// Follows another kind or device of the model, and writes to the adapter's weights by another optimiser.
    /// Refuses an overwritten base, since the adapter belongs to the earlier one. Then nothing changes.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.variables.follow();
        let changes = self.variables.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let in_use: HashSet<usize> = match (&self.merged, &self.shown) {
            (None, Some(name)) => self.adapters[name].slot_variables.iter().copied().collect(),
            _ => HashSet::new(),
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
        if let (Some(name), false) = (&self.shown, changes.written.is_empty()) {
            self.adapters[name].flat.adopt_written()?;
        }
        self.variables.accept(&changes);
        self.samples.remember(&frozen(&self.variables, &self.base, changes.frozen))
    }

    /// Remembers the frozen base, for [`check_base`](Self::check_base).
    pub(crate) fn remember_base(&mut self) -> Result<()> {
        let all = 0..self.variables.len();
        self.samples.remember(&frozen(&self.variables, &self.base, all))
    }

    /// Refuses a base in which an element of the samples has changed without a mark.
    pub(crate) fn check_base(&self) -> Result<()> {
        let base = frozen(&self.variables, &self.base, 0..self.variables.len());
        match self.samples.first_changed(&base)? {
            Some(variable) => Err(self.base_changed(
                variable,
                "was trained or written to (vs.unfreeze with `nn::Sgd`, or `data()`?)",
            )),
            None => Ok(()),
        }
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
        for adapter in self.adapters.values() {
            adapter.flat.adopt_written()?;
        }
        let others = changes.moved.iter().copied().filter(|v| !self.base.contains_key(v));
        if let Some(index) =
            self.samples.first_not_cast(&frozen(&self.variables, &self.base, others))?
        {
            return Err(self.base_changed(index, "was given other values or another shape"));
        }
        let in_use: HashMap<usize, Tensor> =
            match self.shown.as_ref().and_then(|name| self.adapters.get(name)) {
                Some(adapter) => {
                    adapter.all_storages(&self.base).map(|(v, t)| (v, t.shallow_clone())).collect()
                }
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
            if !is_cast(known, &present)? {
                if !in_use.contains_key(index) || self.merged.is_some() {
                    return Err(self.base_changed(*index, "was given other values"));
                }
                foreign.insert(*index, present);
            }
        }
        self.hide_gradients()?;
        let mut base = HashMap::new();
        for (index, data) in &self.base {
            let present = self.variables.get(*index).copy_of.unwrap_or(*index);
            let present = self.variables.get(present).tensor.f_detach()?;
            let before = data.f_to_device(present.device())?;
            let after = before.f_to_kind(present.f_kind()?)?;
            if before.f_kind()? != after.f_kind()? {
                let what = format!("'{}' of the base", self.variables.get(*index).name);
                check_cast(&what, &before, &after)?;
            }
            base.insert(*index, after);
        }
        let mut storages = Vec::with_capacity(self.adapters.len());
        for (name, adapter) in &self.adapters {
            storages.push(adapter.relocated(name, &self.variables, &base)?);
        }
        for (adapter, storage) in self.adapters.values_mut().zip(storages) {
            adapter.set_storage(storage);
        }
        self.base = base;
        self.stack = None;
        self.variables.accept(changes);
        let moved = changes.moved.iter().copied();
        self.samples.remember(&frozen(&self.variables, &self.base, moved))?;
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
        for (variable, storage) in adapter.all_storages(&self.base) {
            self.variables.set_data(variable, storage)?;
        }
        for (variable, required) in adapter.slot_variables.iter().zip(requires_grad) {
            let _ = self.variables.get(*variable).tensor.f_set_requires_grad(required)?;
        }
        self.shown = Some(name.clone());
        let (adapter, leaves) = self.graded(&name)?;
        adapter.gradients.show(&leaves)
    }
}

/// The storage without adapters of those of these variables that are frozen parameters, each tensor once.
fn frozen<'a>(
    variables: &'a Variables,
    base: &'a HashMap<usize, Tensor>,
    among: impl IntoIterator<Item = usize>,
) -> Vec<(usize, &'a Tensor)> {
    let frozen = among.into_iter().filter(|index| {
        let variable = variables.get(*index);
        variable.is_parameter && variable.tied_to == *index && variable.copy_of.is_none()
    });
    let stored = |index| (index, base.get(&index).unwrap_or(&variables.get(index).tensor));
    frozen.map(stored).collect()
}
