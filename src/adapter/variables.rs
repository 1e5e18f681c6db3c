//! The variables of a `VarStore`, and the changes that user code has made to them since the last check.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tch::nn::{self, VarStore};
use tch::{Kind, Tensor};

use crate::error::{refusal, refuse, Result};
use crate::names::natural::natural_cmp;
use crate::pretrained::origin::{self, TiedCopy};
use crate::storage::info::VariableInfo;

/// One variable: a handle that shares the tensor with the layers of the model.
#[derive(Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    /// False for buffers such as BatchNorm statistics, which no optimiser trains.
    pub(crate) is_parameter: bool,
    /// True if it was trainable before an adapter was attached.
    pub(crate) required_grad: bool,
    /// Its parameter group (`Path::set_group`).
    pub(crate) group: usize,
    /// The first variable that shares this one's tensor; its own index if it is not tied.
    pub(crate) tied_to: usize,
    /// The variable of which this is a tied copy. It is empty, and not in the `VarStore`, until an adapter unties it.
    pub(crate) copy_of: Option<usize>,
    /// A frozen matrix that is not kept as numbers of the model: the shape and the kind of its weights, and in words
    /// how it is kept.
    pub(crate) kept: Option<(Vec<i64>, Kind, String)>,
    /// True if it was made after an adapter was attached and is neither frozen nor part of an adapter: user code may
    /// change it.
    pub(crate) is_new: bool,
    /// True if its storage has an address: not sparse, not in the format of oneDNN.
    dense: bool,
    stamp: Stamp,
}

/// The marks of a change: a write raises the version of the tensor, a move changes the address of its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    address: usize,
    version: i64,
}

/// The changes by user code since the last check, as indices of variables.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// With another storage: another kind, another device, or data set by hand.
    pub(crate) moved: Vec<usize>,
    /// Written to in place.
    pub(crate) written: Vec<usize>,
    /// No longer new: frozen by user code.
    pub(crate) frozen: Vec<usize>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.moved.is_empty() && self.written.is_empty() && self.frozen.is_empty()
    }
}

/// All variables, in natural order of their names; those made later come behind.
#[derive(Debug)]
pub(crate) struct Variables {
    list: Vec<Variable>,
    by_name: HashMap<String, usize>,
    /// All names of a tensor that has several, by the first.
    ties: HashMap<usize, Vec<usize>>,
    /// The list in the `VarStore`, to which layers that are made later are added.
    stored: Weak<Mutex<nn::Variables>>,
}

impl Variables {
    pub(crate) fn of(vs: &VarStore) -> Result<Self> {
        if vs.is_empty() {
            refuse!(
                EmptyVarStore,
                "the VarStore holds no variable: build the model on `vs.root()` before attaching an adapter"
            );
        }
        let stored = Arc::downgrade(&vs.variables_);
        let (list, by_name, ties) = Default::default();
        let mut variables = Variables { list, by_name, ties, stored };
        variables.follow();
        variables.list.iter_mut().for_each(|variable| variable.is_new = false);
        for kept in origin::kept(vs) {
            if let Some(index) = variables.position(&kept.name) {
                let words = kept.in_words();
                variables.list[index].kept = Some((kept.shape, kept.kind, words));
            }
        }
        variables.add_copies(origin::copies(vs));
        Ok(variables)
    }

    /// Adds the tied copies of a model from a directory, unless they are untied already, and so in the `VarStore`.
    fn add_copies(&mut self, copies: Vec<TiedCopy>) {
        for copy in copies.into_iter().filter(|copy| copy.tensor.numel() == 0) {
            let Some(original) = self.position(&copy.original) else { continue };
            let (index, variable) = (self.list.len(), &self.list[original]);
            // A variable of its own by now.
            if self.by_name.contains_key(&copy.name) {
                continue;
            }
            self.by_name.insert(copy.name.clone(), index);
            self.list.push(Variable {
                name: copy.name,
                is_parameter: variable.is_parameter,
                group: variable.group,
                required_grad: variable.required_grad,
                tied_to: index,
                copy_of: Some(original),
                kept: variable.kept.clone(),
                is_new: false,
                dense: true,
                stamp: Stamp::of(&copy.tensor, true),
                tensor: copy.tensor,
            });
        }
    }

    /// The tied copies, each with its original.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let indexed = self.list.iter().enumerate();
        indexed.filter_map(|(index, variable)| Some((index, variable.copy_of?)))
    }

    /// Adds the variables that were made since the last call.
    pub(crate) fn follow(&mut self) {
        let Some(stored) = self.stored.upgrade() else { return };
        let stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
        let hidden = self.copies().filter(|(copy, _)| self.list[*copy].tensor.numel() == 0).count();
        if stored.named_variables.len() + hidden == self.list.len() {
            return;
        }
        let known = self.list.len();
        let made =
            stored.named_variables.iter().filter(|(name, _)| !self.by_name.contains_key(*name));
        let mut made: Vec<(&String, &Tensor)> = made.collect();
        made.sort_by(|a, b| natural_cmp(a.0, b.0));
        let trainable = stored.trainable_variables.iter();
        let groups: HashMap<usize, usize> =
            trainable.filter_map(|v| Some((address(&v.tensor)?, v.group))).collect();
        let mut first_at: HashMap<usize, usize> = HashMap::new();
        for (index, variable) in self.list.iter().enumerate() {
            address(&variable.tensor).map(|address| first_at.entry(address).or_insert(index));
        }
        for (name, tensor) in made {
            let (index, address) = (self.list.len(), address(tensor));
            let tied_to = address.map_or(index, |at| *first_at.entry(at).or_insert(index));
            if tied_to != index {
                self.ties.entry(tied_to).or_insert_with(|| vec![tied_to]).push(index);
            }
            self.by_name.insert(name.clone(), index);
            self.list.push(Variable {
                name: name.clone(),
                is_parameter: address.is_some_and(|a| groups.contains_key(&a)),
                group: address.and_then(|a| groups.get(&a).copied()).unwrap_or(0),
                required_grad: tensor.requires_grad(),
                tied_to,
                copy_of: None,
                kept: None,
                is_new: tensor.requires_grad() && tied_to >= known,
                dense: is_dense(tensor),
                stamp: Stamp::of(tensor, is_dense(tensor)),
                tensor: tensor.shallow_clone(),
            });
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Variable> {
        self.list.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The address of each one's storage, as it was when changes were last looked for.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = usize> + '_ {
        self.list.iter().map(|variable| variable.stamp.address)
    }

    pub(crate) fn get(&self, index: usize) -> &Variable {
        &self.list[index]
    }

    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The names, shapes and kinds, for a selection, in natural order of the names.
    pub(crate) fn infos(&self) -> Result<Vec<VariableInfo>> {
        let info = |variable: &Variable| {
            let present = variable.copy_of.map_or(variable, |original| &self.list[original]);
            if let Some((shape, kind, _)) = &present.kept {
                return Ok(VariableInfo {
                    name: variable.name.clone(),
                    shape: shape.clone(),
                    kind: *kind,
                    is_parameter: true,
                });
            }
            Ok(VariableInfo {
                name: variable.name.clone(),
                shape: present.tensor.size(),
                kind: kind(present)?,
                is_parameter: variable.is_parameter,
            })
        };
        let mut infos: Vec<VariableInfo> = self.list.iter().map(info).collect::<Result<_>>()?;
        infos.sort_by(|a, b| natural_cmp(&a.name, &b.name));
        Ok(infos)
    }

    /// All names that share the tensor of variable `index`, itself included.
    pub(crate) fn tied_with(&self, index: usize) -> Vec<usize> {
        self.ties.get(&self.list[index].tied_to).cloned().unwrap_or_else(|| vec![index])
    }

    /// Makes a new variable one of the frozen base.
    pub(crate) fn freeze(&mut self, index: usize) -> Result<()> {
        let variable = &mut self.list[index];
        if variable.tensor.requires_grad() {
            let _ = variable.tensor.f_set_requires_grad(false)?;
        }
        variable.is_new = false;
        variable.stamp = Stamp::of(&variable.tensor, variable.dense);
        Ok(())
    }

    /// Refuses a variable that an adapter would replace, of which only a form in few bits is there, or none on the
    /// device.
    pub(crate) fn check_replaceable(&self, index: usize) -> Result<()> {
        let variable = &self.list[index];
        if let Some((_, _, words)) = &variable.kept {
            refuse!(
                Unsupported,
                "'{}' is frozen and kept as {words}, so no adapter can train it: load the model without it (`base: \
                 mapped` or `device`), or leave the module out of `target_modules` and `modules_to_save`; out of a recipe with \
                 `exclude_modules`",
                variable.name
            );
        }
        Ok(())
    }

    /// True if two handles are one variable, so that a change of one shows in the other.
    pub(crate) fn is_same_tensor(&self, a: usize, b: usize) -> Result<bool> {
        if a == b {
            return Ok(true);
        }
        let (a, b) = (&self.list[a].tensor, &self.list[b].tensor);
        let (before, other) = (a.requires_grad(), b.requires_grad());
        // The test toggles `requires_grad`, which only floating-point tensors have.
        if before != other || !a.is_floating_point() {
            return Ok(false);
        }
        let _ = a.f_set_requires_grad(!before)?;
        let same = b.requires_grad() != other;
        let _ = a.f_set_requires_grad(before)?;
        Ok(same)
    }

    /// Makes a variable, and every layer that shares it, use this storage.
    pub(crate) fn set_data(&mut self, index: usize, data: &Tensor) -> Result<()> {
        let variable = &mut self.list[index];
        variable.tensor.f_set_data(data)?;
        variable.stamp = Stamp::of(&variable.tensor, variable.dense);
        if variable.copy_of.is_some() {
            self.register(index)?;
        }
        Ok(())
    }

    /// Adds a copy that was untied to the `VarStore`, which then moves and saves it, and takes a tied one away.
    fn register(&self, index: usize) -> Result<()> {
        let (variable, Some(stored)) = (&self.list[index], self.stored.upgrade()) else {
            return Ok(());
        };
        let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
        if variable.tensor.numel() == 0 {
            stored.named_variables.remove(&variable.name);
            stored.trainable_variables.retain(|var| var.tensor.numel() > 0);
        } else if !stored.named_variables.contains_key(&variable.name) {
            let tensor = variable.tensor.shallow_clone();
            stored.named_variables.insert(variable.name.clone(), tensor);
            // Only a path makes an entry of the trainable variables; it also sets `requires_grad`.
            let required = variable.tensor.requires_grad();
            let other = VarStore::new(variable.tensor.device());
            let path = other.root().set_group(variable.group);
            let added = path.add("copy", variable.tensor.shallow_clone(), true);
            let _ = added.f_set_requires_grad(required)?;
            let mut other = other.variables_.lock().unwrap_or_else(PoisonError::into_inner);
            stored.trainable_variables.append(&mut other.trainable_variables);
        }
        Ok(())
    }

    /// Marks a variable as changed, so that libtorch refuses the backward pass of a graph that needs its former values.
    pub(crate) fn outdate(&mut self, index: usize) -> Result<()> {
        let variable = &mut self.list[index];
        if !variable.dense {
            return Ok(());
        }
        // An operation in place that changes nothing and launches no kernel.
        let _ = variable.tensor.f_transpose_(0, 0)?;
        let first = variable.tied_to;
        variable.stamp.version += 1;
        for other in self.ties.get(&first).into_iter().flatten().filter(|other| **other != index) {
            self.list[*other].stamp.version += 1;
        }
        Ok(())
    }

    /// [`set_data`](Self::set_data), and no gradient of a graph made before reaches the variable. `spare` is any tensor
    /// of another kind.
    pub(crate) fn renew(&mut self, index: usize, data: &Tensor, spare: &Tensor) -> Result<()> {
        // libtorch forgets the node at which gradients arrive when the kind changes.
        self.list[index].tensor.f_set_data(spare)?;
        self.set_data(index, data)
    }

    /// The changes since the last check. Writes to buffers and to new variables do not count.
    pub(crate) fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for (index, variable) in self.list.iter().enumerate() {
            if variable.is_new {
                if !variable.tensor.requires_grad() {
                    changes.frozen.push(index);
                }
                continue;
            }
            let now = Stamp::of(&variable.tensor, variable.dense);
            if now.address != variable.stamp.address {
                changes.moved.push(index);
            }
            if now.version != variable.stamp.version && variable.is_parameter {
                changes.written.push(index);
            }
        }
        changes
    }

    /// Accepts the present state of the changed variables.
    pub(crate) fn accept(&mut self, changes: &Changes) {
        for &index in &changes.frozen {
            (self.list[index].is_new, self.list[index].required_grad) = (false, false);
        }
        for &index in changes.moved.iter().chain(&changes.written).chain(&changes.frozen) {
            let variable = &mut self.list[index];
            variable.stamp = Stamp::of(&variable.tensor, variable.dense);
        }
    }
}

impl Stamp {
    fn of(tensor: &Tensor, dense: bool) -> Self {
        Stamp {
            address: if dense { tensor.data_ptr() as usize } else { 0 },
            version: tensor.f_internal_version().unwrap_or(0),
        }
    }
}

/// The address of the elements; `None` without elements, or without an address.
fn address(tensor: &Tensor) -> Option<usize> {
    if !is_dense(tensor) {
        return None;
    }
    Some(tensor.data_ptr() as usize).filter(|address| *address != 0)
}

fn is_dense(tensor: &Tensor) -> bool {
    !tensor.is_sparse() && !tensor.is_mkldnn()
}

fn kind(variable: &Variable) -> Result<Kind> {
    variable.tensor.f_kind().map_err(|source| {
        refusal!(
            UnsupportedVariable,
            "variable '{}' has a kind that tch does not know",
            variable.name
        )
        .caused_by(source)
    })
}
