//! Batches whose rows use different adapters: what models and adapters, which do not know each other, have in common.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tch::Tensor;

use crate::error::Result;

/// The name that stands for the base without adapters, as in PEFT.
pub(crate) const BASE: &str = "__base__";

/// The use that a model makes of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// Only models make use of variables.
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) enum Use {
    /// It is no variable of the model.
    None,
    /// Rows may have their own.
    ByRow,
    /// It is the same for all rows.
    AsOne,
}

/// The adapters on the variables of one `VarStore`.
pub(crate) trait Adapters: Send + Sync {
    /// True if this tensor is the variable of this name.
    fn has(&self, name: &str, tensor: &Tensor) -> bool;

    /// The weights of adapters, each name once, where they are used by row.
    ///
    /// # Errors
    /// `UnknownAdapter`; `InvalidState` while an adapter is merged or adapters are disabled; `Unsupported` if one of the
    /// adapters has a variable that is used as one.
    fn of(&self, names: &[&str], uses: &dyn Fn(&str) -> Use) -> Result<Differing>;

    /// Takes notice of a forward pass whose gradients belong to these adapters.
    fn note(&self, pass: Pass);
}

/// The weights of adapters in one forward pass, at which gradients arrive.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Of each row or document that was given a name.
    pub(crate) names: Vec<String>,
    /// The number of a variable among those of the adapters, and its vectors `[names, numbers]`.
    pub(crate) vectors: Vec<(usize, Tensor)>,
    pub(crate) matrices: Vec<OwnMatrix>,
}

/// A matrix of one adapter in a pass.
#[derive(Debug)]
pub(crate) struct OwnMatrix {
    pub(crate) adapter: String,
    /// The number of its variable.
    pub(crate) variable: usize,
    pub(crate) tensor: Tensor,
}

/// Weights that differ between adapters.
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) struct Differing {
    /// One of the adapters trains by its name.
    pub(crate) trains: bool,
    /// Vectors: all those of one kind side by side.
    pub(crate) stacks: Vec<Stack>,
    /// Of each name, its row in the stacks.
    pub(crate) rows: Vec<i64>,
    pub(crate) matrices: Vec<Matrix>,
}

/// The vectors of all adapters, of one kind.
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) struct Stack {
    /// `[adapters, size]`, in the live kind.
    pub(crate) rows: Tensor,
    /// In the order in which they stand in a row.
    pub(crate) columns: Vec<Column>,
}

/// The place of a variable in each row of a stack.
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) struct Column {
    /// The number of the variable.
    pub(crate) variable: usize,
    /// The address of the variable's elements now.
    pub(crate) address: usize,
    pub(crate) start: i64,
    pub(crate) shape: Vec<i64>,
}

/// A variable that is no vector, such as the weight of a head.
#[derive(Debug)]
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) struct Matrix {
    pub(crate) name: String,
    /// The number of the variable.
    pub(crate) variable: usize,
    /// The address of the variable's elements now; 0 if it has none, as a tied copy.
    pub(crate) address: usize,
    /// Per name; empty where a copy is tied to its original.
    pub(crate) values: Vec<Tensor>,
    /// Per name: it trains in batches whose rows name its adapter.
    pub(crate) train: Vec<bool>,
}

/// Makes adapters known to models as long as they are there.
pub(crate) fn register(adapters: Weak<dyn Adapters>) {
    let mut all = registered();
    all.retain(|known| known.strong_count() > 0);
    all.push(adapters);
}

/// The adapters on the `VarStore` that has this tensor under this name.
#[cfg_attr(not(feature = "models"), allow(dead_code))]
pub(crate) fn on(name: &str, tensor: &Tensor) -> Option<Arc<dyn Adapters>> {
    // Not under the lock: adapters have one of their own.
    let all: Vec<Arc<dyn Adapters>> = registered().iter().filter_map(Weak::upgrade).collect();
    all.into_iter().find(|adapters| adapters.has(name, tensor))
}

/// Parts of a batch that belong together.
pub(crate) type Groups<T> = Vec<(T, Vec<i64>)>;

/// The parts of each owner, in the order in which owners come first.
pub(crate) fn groups<T: Copy + Eq + Hash>(owners: impl Iterator<Item = T>) -> Groups<T> {
    let mut groups: Groups<T> = Vec::new();
    let mut at: HashMap<T, usize> = HashMap::new();
    for (part, owner) in (0..).zip(owners) {
        let group = *at.entry(owner).or_insert_with(|| {
            groups.push((owner, Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(part);
    }
    groups
}

/// The places that parts have once groups stand one after the other: the index that brings them back.
pub(crate) fn back<T>(groups: &Groups<T>) -> Vec<i64> {
    let mut back = vec![0; groups.iter().map(|(_, parts)| parts.len()).sum()];
    for (now, part) in groups.iter().flat_map(|(_, parts)| parts).enumerate() {
        back[*part as usize] = now as i64;
    }
    back
}

fn registered() -> MutexGuard<'static, Vec<Weak<dyn Adapters>>> {
    static REGISTERED: Mutex<Vec<Weak<dyn Adapters>>> = Mutex::new(Vec::new());
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}
