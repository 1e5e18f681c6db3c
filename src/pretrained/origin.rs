//! The directories from which `VarStore`s were filled: the model, and the tied tensors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde_json::Value;
use tch::nn::{self, VarStore};
use tch::Tensor;

use super::kept::Kept;
use super::naming::head::Head;

/// A tied copy of a variable: `lm_head.weight` of `embed_tokens.weight`.
///
/// It is no variable of the `VarStore`. Its tensor is empty, and the model uses the original, until an adapter unties
/// it by giving it a storage.
#[derive(Debug)]
pub(crate) struct TiedCopy {
    pub(crate) name: String,
    /// The name of the variable.
    pub(crate) original: String,
    pub(crate) tensor: Tensor,
}

/// The model that a directory describes.
#[derive(Debug)]
pub(crate) struct Described {
    /// Its `config.json`.
    pub(crate) config: Value,
    pub(crate) head: Head,
}

impl Described {
    pub(crate) fn model_type(&self) -> Option<&str> {
        self.config.get("model_type").and_then(Value::as_str)
    }
}

/// The origin of one `VarStore`, whose variables are not kept alive by it.
struct Origin {
    variables: Weak<Mutex<nn::Variables>>,
    model: Arc<Described>,
    copies: Vec<TiedCopy>,
    kept: Vec<Kept>,
}

impl TiedCopy {
    fn shallow_clone(&self) -> Self {
        TiedCopy {
            name: self.name.clone(),
            original: self.original.clone(),
            tensor: self.tensor.shallow_clone(),
        }
    }
}

/// Remembers the origin of a `VarStore` as long as the `VarStore` lives.
pub(super) fn remember(vs: &VarStore, model: Described, copies: Vec<TiedCopy>, kept: Vec<Kept>) {
    let mut origins = origins();
    origins.retain(|origin| origin.variables.strong_count() > 0);
    let (variables, model) = (Arc::downgrade(&vs.variables_), Arc::new(model));
    origins.push(Origin { variables, model, copies, kept });
}

/// The model of a `VarStore`; `None` if it was not filled from a directory.
pub(crate) fn model(vs: &VarStore) -> Option<Arc<Described>> {
    with_origin(vs, |origin| origin.model.clone())
}

/// The tied copies of a `VarStore` that was filled from a directory.
pub(crate) fn copies(vs: &VarStore) -> Vec<TiedCopy> {
    let copies = |origin: &mut Origin| origin.copies.iter().map(TiedCopy::shallow_clone).collect();
    with_origin(vs, copies).unwrap_or_default()
}

/// The matrices of a `VarStore` that are not kept as numbers of the model's kind on its device.
pub(crate) fn kept(vs: &VarStore) -> Vec<Kept> {
    with_origin(vs, |origin| origin.kept.clone()).unwrap_or_default()
}

/// Forgets the copies that the model does not use.
#[cfg(feature = "models")]
pub(crate) fn keep_copies(vs: &VarStore, used: &std::collections::HashSet<String>) {
    with_origin(vs, |origin| origin.copies.retain(|copy| used.contains(&copy.name)));
}

fn with_origin<T>(vs: &VarStore, f: impl FnOnce(&mut Origin) -> T) -> Option<T> {
    let here = Arc::as_ptr(&vs.variables_);
    let mut origins = origins();
    origins.iter_mut().find(|origin| origin.variables.as_ptr() == here).map(f)
}

fn origins() -> MutexGuard<'static, Vec<Origin>> {
    static ORIGINS: Mutex<Vec<Origin>> = Mutex::new(Vec::new());
    ORIGINS.lock().unwrap_or_else(PoisonError::into_inner)
}
