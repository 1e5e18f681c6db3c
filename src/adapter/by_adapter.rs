//! A batch of any model whose rows use different adapters: the rows of each by themselves.

use tch::{Device, Tensor};

use crate::adapter::model::LnTuningModel;
use crate::device::trace::sent_numbers;
use crate::error::{refuse, Result};
use crate::mixed::{back, groups, BASE};

impl LnTuningModel {
    /// Runs a model on a batch whose rows use different adapters: `f` is called for each adapter with its rows `[rows]`,
    /// Int64, on the device of the adapters, and its name, while it is active; `__base__` is the base. The results
    /// `[rows, …]` are put back in the order of `names`, and the adapter of before is active again, also after an error
    /// or a panic.
    ///
    /// It is for models of your own. Those of [`models`](crate::models) take all rows at once, with
    /// [`Inputs::adapter_names`](crate::models::Inputs::adapter_names). A switch takes 0.02 to 0.2 ms, beside the passes
    /// over smaller batches. Not for training: the rows of an adapter that can train lose their graph with the next one.
    ///
    /// ```
    /// # use tch::{nn, nn::Module, Device, Kind, Tensor};
    /// use ln_tuning::{LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # let net = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// # let x = Tensor::randn([3, 4], (Kind::Float, Device::Cpu));
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "poetry")?;
    /// tuned.add_adapter("prose", LnTuningConfig::default())?;
    /// let y = tuned.by_adapter(&["prose", "__base__", "prose"], |rows, _name| {
    ///     Ok(net.forward(&x.f_index_select(0, rows)?))
    /// })?;
    /// assert_eq!(y.size(), x.size());
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` without names; `UnknownAdapter`; `InvalidState` while an adapter is merged or adapters are
    /// disabled; `ShapeMismatch` if `f` gives another number of rows; those of `f`.
    #[doc(alias = "adapter_names")]
    pub fn by_adapter<N: AsRef<str>>(
        &mut self,
        names: &[N],
        mut f: impl FnMut(&Tensor, &str) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let groups = groups(names.iter().map(AsRef::as_ref));
        if groups.is_empty() {
            refuse!(InvalidArgument, "`names` is empty: give a name for each row");
        }
        let distinct: Vec<&str> = groups.iter().map(|(name, _)| *name).collect();
        let device = self.with_attachment(|attachment| {
            attachment.check_mixable(&distinct)?;
            Ok(attachment.base.values().next().map_or(Device::Cpu, Tensor::device))
        })?;
        let active = self.active_adapter();
        let restored = Restored { model: self, active };
        let mut results = Vec::with_capacity(groups.len());
        for (name, rows) in &groups {
            let (active, enabled) = match *name {
                BASE => (restored.active.clone(), false),
                name => (Some(name.to_owned()), true),
            };
            restored.model.show(active, enabled)?;
            let result = f(&sent_numbers(rows, device)?, name)?;
            if result.size().first() != Some(&(rows.len() as i64)) {
                refuse!(
                    ShapeMismatch,
                    "for the {} rows of '{name}' the result has shape {:?}, expected a row for each",
                    rows.len(),
                    result.size()
                );
            }
            results.push(result);
        }
        restored.now()?;
        let all = Tensor::f_cat(&results, 0)?;
        Ok(all.f_index_select(0, &sent_numbers(&back(&groups), all.device())?)?)
    }

    fn show(&mut self, active: Option<String>, enabled: bool) -> Result<()> {
        self.change(|attachment| {
            (attachment.active, attachment.enabled) = (active, enabled);
            Ok(())
        })
    }
}

/// Makes the adapter of before active again when it is dropped.
struct Restored<'a> {
    model: &'a mut LnTuningModel,
    active: Option<String>,
}

impl Restored<'_> {
    fn now(self) -> Result<()> {
        self.model.show(self.active.clone(), true)
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.model.show(self.active.take(), true) {
            // A destructor cannot return an error; the next call will find and report the same state.
            eprintln!("warning: the active adapter could not be set again: {error}");
        }
    }
}
