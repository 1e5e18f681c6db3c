//! The adapter in use: set, disable, merge, unload.

use crate::adapter::attachment::Attachment;
use crate::adapter::model::LnTuningModel;
use crate::error::{refusal, refuse, Result};

impl LnTuningModel {
    /// The adapter that the model uses while adapters are enabled, if any.
    pub fn active_adapter(&self) -> Option<String> {
        self.attachment().active.clone()
    }

    /// The names of all adapters, sorted.
    #[doc(alias = "peft_config")]
    pub fn adapters(&self) -> Vec<String> {
        self.attachment().adapters.keys().cloned().collect()
    }

    /// Makes an adapter active, with one pointer swap per tensor. Modules that it does not tune use the base. An
    /// adapter that was loaded for inference stays frozen. A loss computed before is not for an adapter that can train:
    /// its backward pass is refused, as it would use the weights of now.
    ///
    /// # Errors
    /// `UnknownAdapter`; `InvalidState` while an adapter is merged.
    ///
    /// ```
    /// # use tch::{nn, Device};
    /// # use ln_tuning::{LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "poetry")?;
    /// tuned.add_adapter("prose", LnTuningConfig::default())?;
    /// tuned.set_adapter("prose")?; // the model computes with it from here on
    /// tuned.with_disabled(|| { /* here with the base */ })?;
    /// tuned.merge_adapter("prose")?; // its weights stand in the base's place …
    /// tuned.unmerge_adapter()?; // … and the base is back
    /// assert_eq!(tuned.active_adapter().as_deref(), Some("prose"));
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn set_adapter(&mut self, name: &str) -> Result<()> {
        self.change(|attachment| {
            attachment.adapter(name)?;
            attachment.check_unmerged("set another adapter")?;
            attachment.active = Some(name.to_owned());
            Ok(())
        })
    }

    /// Deletes an adapter. If it was active, the model uses the base until another is set.
    ///
    /// # Errors
    /// `UnknownAdapter`; `InvalidState` while it is merged.
    pub fn delete_adapter(&mut self, name: &str) -> Result<()> {
        self.change(|attachment| {
            attachment.adapter(name)?;
            if attachment.merged.as_deref() == Some(name) {
                attachment.check_unmerged("delete it")?;
            }
            attachment.active = attachment.active.take().filter(|active| active != name);
            Ok(())
        })?;
        self.attachment().remove(name);
        Ok(())
    }

    /// Uses the base until the guard is dropped. A loss computed before may go backward afterwards, but not meanwhile.
    ///
    /// # Errors
    /// `InvalidState` while an adapter is merged.
    #[doc(alias = "disable_adapter")]
    pub fn disable(&mut self) -> Result<DisabledAdapters<'_>> {
        let before = self.attachment().enabled;
        self.change(|attachment| {
            attachment.check_unmerged("disable adapters")?;
            attachment.enabled = false;
            Ok(())
        })?;
        Ok(DisabledAdapters { model: self, before })
    }

    /// Uses the adapters again. Only needed if a guard of [`disable`](Self::disable) was forgotten
    /// (`std::mem::forget`): dropping it does the same.
    ///
    /// # Errors
    /// If the variables were changed in a way that cannot be followed.
    #[doc(alias = "enable_adapter_layers")]
    pub fn enable(&mut self) -> Result<()> {
        self.change(|attachment| {
            attachment.enabled = true;
            Ok(())
        })
    }

    /// Runs `f` on the base.
    ///
    /// # Errors
    /// As [`disable`](Self::disable).
    pub fn with_disabled<T>(&mut self, f: impl FnOnce() -> T) -> Result<T> {
        let _guard = self.disable()?;
        Ok(f())
    }

    /// Puts the active adapter's weights in place of the base's, exactly, until unmerged. Nothing trains meanwhile.
    ///
    /// # Errors
    /// `UnknownAdapter`; `InvalidState` if another adapter is active, or one is merged already.
    pub fn merge_adapter(&mut self, name: &str) -> Result<()> {
        self.change(|attachment| {
            attachment.adapter(name)?;
            attachment.check_unmerged("merge an adapter")?;
            attachment.check_base()?;
            if attachment.active.as_deref() != Some(name) {
                refuse!(
                    InvalidState,
                    "adapter '{name}' is not active ('{}' is): call `set_adapter(\"{name}\")` before \
                     merging it",
                    attachment.active.as_deref().unwrap_or("none")
                );
            }
            attachment.merged = Some(name.to_owned());
            Ok(())
        })
    }

    /// The inverse of [`merge_adapter`](Self::merge_adapter), bit for bit.
    ///
    /// # Errors
    /// `InvalidState` if no adapter is merged.
    pub fn unmerge_adapter(&mut self) -> Result<()> {
        self.change(|attachment| match attachment.merged.take() {
            Some(_) => Ok(()),
            None => Err(refusal!(InvalidState, "no adapter is merged: there is nothing to undo")),
        })
    }

    /// Keeps the active adapter's weights in the model, `modules_to_save` included, and deletes all adapters. Every
    /// variable then has the `requires_grad` that it had before an adapter was attached.
    ///
    /// # Errors
    /// `InvalidState` if no adapter is active. On any error the handle is lost but the variables are as before.
    pub fn merge_and_unload(self) -> Result<()> {
        self.with_attachment(|attachment| {
            if attachment.active.is_none() && attachment.merged.is_none() {
                refuse!(
                    InvalidState,
                    "no adapter is active: call `set_adapter` before `merge_and_unload`, or use `unload`"
                );
            }
            attachment.check_base()?;
            attachment.enabled = true;
            attachment.apply()?;
            attachment.clear()
        })
    }

    /// Deletes all adapters and restores the base, bit for bit, also from `modules_to_save` and merged adapters. Every
    /// variable then has the `requires_grad` that it had before an adapter was attached.
    ///
    /// # Errors
    /// `BaseChanged` if the base was overwritten meanwhile.
    pub fn unload(self) -> Result<()> {
        self.with_attachment(|attachment| {
            attachment.check_base()?;
            (attachment.active, attachment.merged) = (None, None);
            attachment.apply()?;
            attachment.clear()
        })
    }

    /// Makes an adapter trainable, or freezes it; others do not change. Also freezes the base again if user code has
    /// made it trainable (`vs.unfreeze`).
    ///
    /// # Errors
    /// `UnknownAdapter`.
    pub fn set_requires_grad(&mut self, name: &str, requires_grad: bool) -> Result<()> {
        self.change(|attachment| {
            attachment.adapter_mut(name)?.trainable = requires_grad;
            attachment.restore_requires_grad()
        })
    }

    /// Changes the state and updates the variables; on an error, restores the former state.
    pub(super) fn change(&mut self, f: impl FnOnce(&mut Attachment) -> Result<()>) -> Result<()> {
        self.with_attachment(|attachment| {
            let before = (attachment.active.clone(), attachment.enabled, attachment.merged.clone());
            f(attachment).and_then(|()| attachment.apply()).inspect_err(|_| {
                (attachment.active, attachment.enabled, attachment.merged) = before;
                // Best effort: the first error is the one to return.
                let _ = attachment.apply();
            })
        })
    }
}

/// A guard: while it lives, the model uses the base. Created by [`LnTuningModel::disable`].
#[derive(Debug)]
#[must_use = "adapters are enabled again when the guard is dropped"]
pub struct DisabledAdapters<'a> {
    model: &'a mut LnTuningModel,
    before: bool,
}

impl Drop for DisabledAdapters<'_> {
    fn drop(&mut self) {
        let before = self.before;
        let enabled = self.model.change(|attachment| {
            attachment.enabled = before;
            Ok(())
        });
        if let Err(error) = enabled {
            // A destructor cannot return an error; the next call will find and report the same state.
            eprintln!("warning: adapters could not be enabled again: {error}");
        }
    }
}
