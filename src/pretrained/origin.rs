//! The model types of `VarStore`s that were filled from a directory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tch::nn::{self, VarStore};

/// The variables of each VarStore (weak, so that they are not kept alive) and its model type.
type Origins = Vec<(Weak<Mutex<nn::Variables>>, String)>;

/// Remembers the model type of a `VarStore` as long as the `VarStore` lives.
pub(super) fn remember(vs: &VarStore, model_type: &str) {
    let mut origins = origins();
    origins.retain(|(variables, _)| variables.strong_count() > 0);
    origins.push((Arc::downgrade(&vs.variables_), model_type.to_owned()));
}

/// The model type of a `VarStore`; `None` if it was not filled from a directory.
pub(crate) fn model_type(vs: &VarStore) -> Option<String> {
    let here = Arc::as_ptr(&vs.variables_);
    let origins = origins();
    let found = origins.iter().find(|(variables, _)| variables.as_ptr() == here);
    found.map(|(_, model_type)| model_type.clone())
}

fn origins() -> MutexGuard<'static, Origins> {
    static ORIGINS: Mutex<Origins> = Mutex::new(Vec::new());
    ORIGINS.lock().unwrap_or_else(PoisonError::into_inner)
}
