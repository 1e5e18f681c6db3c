//! The `VarStore`s that have adapters, so that none gets two handles.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tch::nn::{self, VarStore};

use super::attachment::{lock, Attachment};
use crate::error::{refuse, Result};
use crate::mixed::{self, Adapters};

/// A VarStore's variables and the adapters on them, both weak.
type Attached = (Weak<Mutex<nn::Variables>>, Weak<Mutex<Attachment>>);

/// The `VarStore`s that have adapters: two handles on one would swap the storage under each other.
pub(crate) struct Registry(MutexGuard<'static, Vec<Attached>>);

impl Registry {
    pub(crate) fn lock() -> Self {
        static ATTACHED: Mutex<Vec<Attached>> = Mutex::new(Vec::new());
        Registry(ATTACHED.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn check_free(&mut self, vs: &VarStore) -> Result<()> {
        self.0.retain(|(stored, attachment)| {
            stored.strong_count() > 0
                && attachment.upgrade().is_some_and(|a| !lock(&a).adapters.is_empty())
        });
        let here = Arc::downgrade(&vs.variables_);
        if self.0.iter().any(|(stored, _)| stored.ptr_eq(&here)) {
            refuse!(
                InvalidState,
                "this VarStore has adapters of another LnTuningModel: use its `add_adapter`, or first `unload` it, or \
                 drop it and its optimizers"
            );
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, vs: &VarStore, attachment: &Arc<Mutex<Attachment>>) {
        self.0.push((Arc::downgrade(&vs.variables_), Arc::downgrade(attachment)));
        let adapters: Weak<dyn Adapters> = Arc::<Mutex<Attachment>>::downgrade(attachment);
        mixed::register(adapters);
    }
}
