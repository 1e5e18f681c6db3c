//! The variables of a `VarStore`, and the changes that user code has made to them since the last check.

use std::collections::HashMap;
use std::sync::PoisonError;

use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::error::{refusal, refuse, Result};
use crate::names::natural::natural_cmp;
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
}

/// All variables, in natural order of their names.
#[derive(Debug)]
pub(crate) struct Variables {
    list: Vec<Variable>,
    by_name: HashMap<String, usize>,
    /// Those that share their tensor with another one.
    tied: Vec<usize>,
}

impl Variables {
    pub(crate) fn of(vs: &VarStore) -> Result<Self> {
        if vs.is_empty() {
            refuse!(
                EmptyVarStore,
                "the VarStore holds no variable: build the model on `vs.root()` before attaching an adapter"
            );
        }
        let groups: HashMap<usize, usize> = {
            let stored = vs.variables_.lock().unwrap_or_else(PoisonError::into_inner);
            let trainable = stored.trainable_variables.iter();
            trainable.filter_map(|v| Some((address(&v.tensor)?, v.group))).collect()
        };
        let mut named: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
        named.sort_by(|a, b| natural_cmp(&a.0, &b.0));
        let mut first_at: HashMap<usize, usize> = HashMap::new();
        let mut list = Vec::with_capacity(named.len());
        let mut by_name = HashMap::with_capacity(named.len());
        for (index, (name, tensor)) in named.into_iter().enumerate() {
            let address = address(&tensor);
            let tied_to = match address {
                Some(address) => *first_at.entry(address).or_insert(index),
                None => index,
            };
            by_name.insert(name.clone(), index);
            list.push(Variable {
                is_parameter: address.is_some_and(|a| groups.contains_key(&a)),
                group: address.and_then(|a| groups.get(&a).copied()).unwrap_or(0),
                required_grad: tensor.requires_grad(),
                tied_to,
                dense: is_dense(&tensor),
                stamp: Stamp::of(&tensor, is_dense(&tensor)),
                name,
                tensor,
            });
        }
        let later =
            list.iter().enumerate().filter(|(index, v): &(usize, &Variable)| v.tied_to != *index);
        let mut tied: Vec<usize> = later.flat_map(|(index, v)| [index, v.tied_to]).collect();
        tied.sort_unstable();
        tied.dedup();
        Ok(Variables { list, by_name, tied })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Variable> {
        self.list.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get(&self, index: usize) -> &Variable {
        &self.list[index]
    }

    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The names, shapes and kinds, for a selection.
    pub(crate) fn infos(&self) -> Result<Vec<VariableInfo>> {
        self.list
            .iter()
            .map(|variable| {
                Ok(VariableInfo {
                    name: variable.name.clone(),
                    shape: variable.tensor.size(),
                    kind: kind(variable)?,
                    is_parameter: variable.is_parameter,
                })
            })
            .collect()
    }

    /// All names that share the tensor of variable `index`, itself included.
    pub(crate) fn tied_with(&self, index: usize) -> Vec<usize> {
        let first = self.list[index].tied_to;
        (0..self.list.len()).filter(|&other| self.list[other].tied_to == first).collect()
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
        for other in self.tied.iter().filter(|other| **other != index) {
            if self.list[*other].tied_to == first {
                self.list[*other].stamp.version += 1;
            }
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

    /// The changes since the last check. Writes to buffers do not count.
    pub(crate) fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for (index, variable) in self.list.iter().enumerate() {
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
        for &index in changes.moved.iter().chain(&changes.written) {
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
