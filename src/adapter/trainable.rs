//! The adapters that can train: nothing else has gradients, and all that has one is theirs.

use crate::adapter::attachment::Attachment;
use crate::adapter::variables::Variable;
use crate::adapter::weights::Adapter;
use crate::error::{refuse, Result};

impl Attachment {
    /// Refuses an optimiser step on this adapter unless exactly its weights are trainable.
    pub(crate) fn check_trainable(&self, name: &str) -> Result<()> {
        let adapter = self.adapter(name)?;
        self.check_in_use()?;
        if self.active.as_deref() != Some(name) {
            refuse!(
                InvalidState,
                "adapter '{name}' is not active ('{}' is), so it gets no gradient: call `set_adapter(\"{name}\")` first",
                self.active.as_deref().unwrap_or("none")
            );
        }
        check_not_frozen(name, adapter)?;
        if let Some(frozen) = self.trained(name)?.find(|v| !v.tensor.requires_grad()) {
            refuse!(
                InvalidState,
                "'{}' is selected but no longer requires a gradient (vs.freeze?): call \
                 `set_requires_grad(\"{name}\", true)`",
                frozen.name
            );
        }
        self.check_claimed()?;
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

    /// Refuses a step while adapters are merged or disabled.
    fn check_in_use(&self) -> Result<()> {
        if let Some(merged) = &self.merged {
            refuse!(
                InvalidState,
                "adapter '{merged}' is merged, so nothing trains: call `unmerge_adapter` first"
            );
        }
        if !self.enabled {
            refuse!(
                InvalidState,
                "adapters are disabled, so nothing trains: drop the guard of `disable` first, or call `enable` if it was \
                 forgotten"
            );
        }
        Ok(())
    }

    /// [`check_trainable`](Self::check_trainable) for an adapter that rows name, whichever is active.
    pub(crate) fn check_trainable_by_name(&self, name: &str) -> Result<()> {
        let adapter = self.adapter(name)?;
        self.check_in_use()?;
        check_not_frozen(name, adapter)?;
        self.check_claimed()
    }

    /// Lets an adapter train in batches whose rows name it.
    pub(crate) fn train_by_name(&mut self, name: &str) -> Result<()> {
        self.check_trainable_by_name(name)?;
        let id = self.adapter(name)?.id;
        self.trained_by_name.insert(id);
        Ok(())
    }

    /// Refuses trainable variables that were made after an adapter was attached and that no adapter trains or saves.
    pub(crate) fn check_claimed(&self) -> Result<()> {
        let mut new = self.variables.iter().filter(|variable| variable.is_new);
        let Some(first) = new.next() else { return Ok(()) };
        let module = first.name.rsplit_once('.').map_or(first.name.as_str(), |(module, _)| module);
        let others = match new.count() {
            0 => String::new(),
            others => format!(" (and {others} more)"),
        };
        refuse!(
            InvalidState,
            "'{}'{others} was made after the adapter was attached, so no adapter trains or saves it. Attach once the \
             model is complete, or give it to a new adapter: `add_adapter` with `modules_to_save([\"{module}\"])` and \
             `set_adapter`. To leave it as it is: `set_requires_grad`, which freezes all but the adapter",
            first.name
        )
    }
}

fn check_not_frozen(name: &str, adapter: &Adapter) -> Result<()> {
    if !adapter.trainable {
        refuse!(
            InvalidState,
            "adapter '{name}' is frozen (loaded for inference?): call `set_requires_grad(\"{name}\", true)` to train it"
        );
    }
    Ok(())
}
