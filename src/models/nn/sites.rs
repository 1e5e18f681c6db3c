//! The variables that a model has taken, and the use that it makes of each where rows have adapters of their own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::mixed::Use;

/// The variables of a model by their full names. All parts of a model share it.
#[derive(Debug, Default)]
pub(in crate::models) struct Sites(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    uses: HashMap<String, Use>,
    /// A variable that tells the model's `VarStore` from others.
    known: Option<(String, Tensor)>,
}

impl Sites {
    /// Notes a variable that all rows share.
    pub(super) fn take(&self, name: &str) {
        self.taken().uses.entry(name.to_owned()).or_insert(Use::AsOne);
    }

    /// Notes a variable of which rows may have their own.
    pub(super) fn take_by_row(&self, name: &str, tensor: Option<&Tensor>) {
        let mut taken = self.taken();
        taken.uses.insert(name.to_owned(), Use::ByRow);
        if let Some(tensor) = tensor.filter(|tensor| tensor.numel() > 0) {
            taken.known.get_or_insert_with(|| (name.to_owned(), tensor.shallow_clone()));
        }
    }

    pub(in crate::models) fn use_of(&self, name: &str) -> Use {
        self.taken().uses.get(name).copied().unwrap_or(Use::None)
    }

    /// Calls `f` with the name and the tensor of a variable.
    pub(in crate::models) fn with_known<T>(&self, f: impl FnOnce(&str, &Tensor) -> T) -> Option<T> {
        self.taken().known.as_ref().map(|(name, tensor)| f(name, tensor))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
