//! One adapter: a configuration, its selection and its weights.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};

use crate::adapter::config::LnTuningConfig;
use crate::adapter::flat::{copy_of, FlatParams, Precision};
use crate::adapter::gradients::Gradients;
use crate::adapter::options::AdapterOptions;
use crate::adapter::selection::{NormPlace, SelectedTensor, Selection};
use crate::adapter::variables::Variables;
use crate::error::{refuse, Result};
use crate::storage::finite::check_cast;
use crate::storage::info::is_float;

/// One adapter. Its weights are a deep copy of the selected modules: parameters in one flat buffer, buffers beside it.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Distinguishes this adapter from a later one of the same name.
    pub(crate) id: u64,
    pub(crate) config: LnTuningConfig,
    pub(crate) selection: Selection,
    /// The number of variables among which was selected: later ones may match its configuration too.
    pub(crate) selected_among: usize,
    /// The options that it was created with.
    pub(crate) options: AdapterOptions,
    /// Every selected tensor under every name, in the order of the selection.
    pub(crate) entries: Vec<Entry>,
    pub(crate) flat: FlatParams,
    pub(crate) gradients: Gradients,
    /// The variable of each slot of `flat`.
    pub(crate) slot_variables: Vec<usize>,
    /// Tensors that are part of a selected module but not trained, such as BatchNorm statistics.
    pub(crate) buffers: Vec<(usize, Tensor)>,
    /// Tied copies that keep the base's storage while this adapter replaces their originals, each with its original.
    pub(crate) kept: Vec<(usize, usize)>,
    /// False for an adapter that was loaded for inference.
    pub(crate) trainable: bool,
}

/// A selected tensor and its place.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) tensor: SelectedTensor,
    pub(crate) place: Place,
}

/// The place of a tensor in an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Slot(usize),
    Buffer(usize),
}

/// The weights of an adapter.
#[derive(Debug)]
pub(crate) struct Storage {
    flat: FlatParams,
    gradients: Option<FlatParams>,
    buffers: Vec<(usize, Tensor)>,
}

impl Adapter {
    /// Copies the selected tensors from `base`, which returns the storage of a variable without adapters.
    pub(crate) fn new(
        variables: &Variables,
        base: impl Fn(usize) -> Result<Tensor>,
        config: LnTuningConfig,
        selection: Selection,
        options: AdapterOptions,
    ) -> Result<Self> {
        let precision = options.precision;
        let mut entries = Vec::new();
        let mut slot_variables: Vec<usize> = Vec::new();
        let mut values = Vec::new();
        let mut buffers: Vec<(usize, Tensor)> = Vec::new();
        let chosen: HashSet<usize> =
            selection.variables().filter_map(|name| variables.position(name)).collect();
        let mut wrapped: HashMap<usize, &str> = HashMap::new();
        for module in selection.modules() {
            let indices = module.variables.iter().filter_map(|name| variables.position(name));
            wrapped.extend(indices.map(|index| (index, module.wrapped.as_str())));
        }
        let mut places: HashMap<usize, Place> = HashMap::new();
        for (name, tensor) in selection.variables().zip(selection.tensors()) {
            let Some(index) = variables.position(name) else { continue };
            let variable = variables.get(index);
            let owner = owner(variables, index, &wrapped, &selection);
            let trains = variable.is_parameter && !selection.is_carried(name);
            if !places.contains_key(&owner) {
                check_ties(variables, index, &chosen)?;
            }
            let data = base(owner)?;
            if trains {
                check_parameter(name, &data)?;
            }
            let place = match places.get(&owner) {
                Some(place) => *place,
                None if trains => {
                    slot_variables.push(owner);
                    values.push(data);
                    Place::Slot(slot_variables.len() - 1)
                }
                None => {
                    buffers.push((owner, copy_of(&data)?));
                    Place::Buffer(buffers.len() - 1)
                }
            };
            places.insert(owner, place);
            entries.push(Entry { tensor, place });
        }
        if slot_variables.is_empty() {
            let names: Vec<&str> = selection.variables().take(4).collect();
            refuse!(
                UnsupportedVariable,
                "nothing can be trained: only '{}' was selected, which was added to the VarStore as not trainable (a \
                 buffer)",
                names.join("', '")
            );
        }
        // A copy that is trained with its original in one module stays tied to it, and needs no storage.
        let stays = |(copy, original): &(usize, usize)| {
            let carried = selection.is_carried(&variables.get(*original).name);
            places.contains_key(original) && !carried && !wrapped.contains_key(copy)
        };
        let kept = variables.copies().filter(stays).collect();
        check_uniform(variables, &slot_variables, &values, precision)?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Adapter {
            trainable: !config.inference_mode,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            flat: FlatParams::new(&values, precision)?,
            gradients: Gradients::new(slot_variables.len()),
            config,
            selection,
            selected_among: variables.len(),
            options,
            entries,
            slot_variables,
            buffers,
            kept,
        })
    }

    /// As [`storages`](Self::storages), with the tied copies that keep the storage in `base`.
    pub(crate) fn all_storages<'s>(
        &'s self,
        base: &'s HashMap<usize, Tensor>,
    ) -> impl Iterator<Item = (usize, &'s Tensor)> {
        let kept = self.kept.iter();
        self.storages()
            .chain(kept.filter_map(|(copy, original)| Some((*copy, base.get(original)?))))
    }

    /// True if it replaces this variable.
    pub(crate) fn has(&self, variable: usize) -> bool {
        self.slot_variables.contains(&variable)
            || self.buffers.iter().any(|(v, _)| *v == variable)
            || self.kept.iter().any(|(copy, _)| *copy == variable)
    }

    /// Its storage for a variable, if it replaces that one.
    pub(crate) fn storage<'s>(
        &'s self,
        variable: usize,
        base: &'s HashMap<usize, Tensor>,
    ) -> Option<&'s Tensor> {
        self.all_storages(base).find(|(v, _)| *v == variable).map(|(_, storage)| storage)
    }

    /// A number that every marked change of its weights raises.
    pub(crate) fn version(&self) -> Result<i64> {
        let buffers = self.buffers.iter().map(|(_, tensor)| Ok(tensor.f_internal_version()?));
        Ok(self.flat.version()? + buffers.sum::<Result<i64>>()?)
    }

    /// Every variable that it replaces, with the adapter's storage for it.
    pub(crate) fn storages(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        let slots = self.slot_variables.iter().enumerate().map(|(s, v)| (*v, self.flat.view(s)));
        slots.chain(self.buffers.iter().map(|(v, tensor)| (*v, tensor)))
    }

    /// The place of each slot's norm; `None` for what is no norm.
    pub(crate) fn slot_places(&self) -> Vec<Option<NormPlace>> {
        let modules = self.selection.modules().iter();
        let by_path: HashMap<&str, Option<NormPlace>> =
            modules.map(|module| (module.path.as_str(), module.place)).collect();
        let mut places = vec![None; self.slot_variables.len()];
        for entry in self.entries.iter().rev() {
            if let Place::Slot(slot) = entry.place {
                places[slot] = by_path.get(entry.tensor.module.as_str()).copied().flatten();
            }
        }
        places
    }

    /// The tensor of this entry in a checkpoint: the master of a parameter, or the buffer.
    pub(crate) fn value(&self, entry: &Entry) -> Result<Tensor> {
        match entry.place {
            Place::Slot(slot) => self.flat.value(slot),
            Place::Buffer(buffer) => Ok(self.buffers[buffer].1.shallow_clone()),
        }
    }

    /// The variable at a place.
    pub(crate) fn variable(&self, place: Place) -> usize {
        match place {
            Place::Slot(slot) => self.slot_variables[slot],
            Place::Buffer(buffer) => self.buffers[buffer].0,
        }
    }

    /// The entries by the names of their variables.
    pub(crate) fn by_name(&self) -> HashMap<String, &Entry> {
        self.entries.iter().map(|entry| (entry.tensor.variable(), entry)).collect()
    }

    /// The model's kind for this entry.
    pub(crate) fn model_kind(&self, entry: &Entry) -> Result<Kind> {
        match entry.place {
            Place::Slot(slot) => Ok(self.flat.slots()[slot].kind),
            Place::Buffer(buffer) => Ok(self.buffers[buffer].1.f_kind()?),
        }
    }

    /// Overwrites the tensor of an entry. The caller has checked the shape.
    pub(crate) fn set_value(&mut self, place: Place, value: &Tensor) -> Result<()> {
        match place {
            Place::Slot(slot) => self.flat.set_value(slot, value),
            Place::Buffer(buffer) => Ok(self.buffers[buffer].1.f_copy_(value)?),
        }
    }

    /// Overwrites the tensors of several entries; for a tied tensor the last one counts. The caller has checked the
    /// shapes.
    pub(crate) fn set_all(&mut self, values: &[(Place, &Tensor)]) -> Result<()> {
        let mut slots: Vec<Option<&Tensor>> = vec![None; self.slot_variables.len()];
        for (place, value) in values {
            match place {
                Place::Slot(slot) => slots[*slot] = Some(value),
                Place::Buffer(_) => self.set_value(*place, value)?,
            }
        }
        if slots.iter().all(Option::is_some) {
            return self.flat.set_values(&slots.into_iter().flatten().collect::<Vec<_>>());
        }
        for (slot, value) in slots.into_iter().enumerate() {
            value.map_or(Ok(()), |value| self.flat.set_value(slot, value))?;
        }
        Ok(())
    }

    /// A copy of this adapter's storage, in the present kinds and on the present device of the base.
    pub(crate) fn relocated(
        &self,
        name: &str,
        variables: &Variables,
        base: &HashMap<usize, Tensor>,
    ) -> Result<Storage> {
        let mut kinds = Vec::with_capacity(self.slot_variables.len());
        let mut device = None;
        for variable in &self.slot_variables {
            let tensor = &base[variable];
            kinds.push(tensor.f_kind()?);
            let first = *device.get_or_insert(tensor.device());
            if first != tensor.device() {
                refuse!(
                    BaseChanged,
                    "the variables of adapter '{name}' are on {first:?} and on {:?} now: move the whole model with \
                     `vs.set_device`",
                    tensor.device()
                );
            }
        }
        let device = device.unwrap_or_else(|| self.flat.master().device());
        let mut buffers = Vec::with_capacity(self.buffers.len());
        for (variable, tensor) in &self.buffers {
            let like = &base[variable];
            buffers
                .push((*variable, tensor.f_to_device(like.device())?.f_to_kind(like.f_kind()?)?));
        }
        let flat = self.flat.relocate(device, &kinds, self.options.precision)?;
        for (slot, (before, after)) in self.flat.slots().iter().zip(flat.slots()).enumerate() {
            if before.kind != after.kind {
                let variable = &variables.get(self.slot_variables[slot]).name;
                let what = format!("'{variable}' of adapter '{name}'");
                check_cast(&what, &self.flat.value(slot)?.f_to_device(device)?, flat.view(slot))?;
            }
        }
        let gradients = self.gradients.relocated(device, &kinds)?;
        Ok(Storage { flat, gradients, buffers })
    }

    pub(crate) fn set_storage(&mut self, storage: Storage) {
        self.flat = storage.flat;
        self.gradients.set_flat(storage.gradients);
        self.buffers = storage.buffers;
    }

    /// The number of trainable weights; buffers and padding do not count.
    pub(crate) fn numel(&self) -> u64 {
        self.flat.slots().iter().map(|slot| slot.len as u64).sum()
    }
}

/// The variable whose storage the adapter replaces for variable `index`: its own, unless it is tied to another.
///
/// As in PEFT, which copies each module by itself, a tied copy is trained apart from its original, unless both are in
/// one module that is wrapped as a whole. What an adapter brings along for the base is for both.
fn owner(
    variables: &Variables,
    index: usize,
    wrapped: &HashMap<usize, &str>,
    selection: &Selection,
) -> usize {
    let variable = variables.get(index);
    let carried = |index: usize| selection.is_carried(&variables.get(index).name);
    let together = |original: &usize| match wrapped.get(original) {
        Some(module) if !carried(*original) => Some(module) == wrapped.get(&index),
        _ => carried(index),
    };
    variable.copy_of.filter(together).unwrap_or(variable.tied_to)
}

/// Refuses a tied tensor of which only some names are selected, since all of them would train.
fn check_ties(variables: &Variables, index: usize, chosen: &HashSet<usize>) -> Result<()> {
    let name = &variables.get(index).name;
    for other in variables.tied_with(index) {
        let other_name = &variables.get(other).name;
        if !chosen.contains(&other) {
            refuse!(
                TiedTensors,
                "'{name}' shares its tensor with '{other_name}', which is not selected: training one would change \
                 the other. Select both, or neither"
            );
        }
        if !variables.is_same_tensor(index, other)? {
            refuse!(
                TiedTensors,
                "'{name}' and '{other_name}' are two tensors over the same memory: they cannot be tuned together. \
                 Tie them with `shallow_clone`, or select neither"
            );
        }
    }
    Ok(())
}

fn check_parameter(name: &str, data: &Tensor) -> Result<()> {
    let kind = data.f_kind()?;
    let why = if data.is_sparse() || data.is_mkldnn() {
        "it is not a dense tensor".to_owned()
    } else if !is_float(kind) {
        format!("its kind is {kind:?}, expected Float, Double, Half or BFloat16")
    } else if data.numel() == 0 {
        "it has no elements".to_owned()
    } else {
        return Ok(());
    };
    refuse!(
        UnsupportedVariable,
        "'{name}' was selected but cannot be trained: {why}. Exclude it with `exclude_modules`"
    )
}

fn check_uniform(
    variables: &Variables,
    slots: &[usize],
    values: &[Tensor],
    precision: Precision,
) -> Result<()> {
    let Some(first) = values.first() else { return Ok(()) };
    for (index, value) in slots.iter().zip(values) {
        let (name, first_name) = (&variables.get(*index).name, &variables.get(slots[0]).name);
        if value.device() != first.device() {
            refuse!(
                UnsupportedVariable,
                "'{first_name}' is on {:?} and '{name}' on {:?}: the tensors of an adapter must be on one device. \
                 Move the model with `vs.set_device`, or use one adapter per device",
                first.device(),
                value.device()
            );
        }
        if precision == Precision::Model && value.f_kind()? != first.f_kind()? {
            refuse!(
                UnsupportedVariable,
                "'{first_name}' is {:?} and '{name}' {:?}: Precision::Model needs one kind. Use Precision::Master, \
                 which takes any mixture",
                first.f_kind()?,
                value.f_kind()?
            );
        }
    }
    Ok(())
}
