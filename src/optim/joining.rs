//! Joining a group of processes: all that must be the same on them is compared.

use std::sync::Arc;

use tch::Device;

use super::loss_scale::LossScale;
use super::optimizer::Optimizer;
use crate::adapter::attachment::Attachment;
use crate::distributed::{digest::Digest, ProcessGroup};
use crate::error::Result;
use crate::storage::safetensors::bytes_of;

impl Optimizer {
    /// Trains together with the other processes of a group, each of which calls this: their gradients are reduced
    /// to one before every update, in one all-reduce, and only on the last backward pass of an
    /// [accumulation](Self::set_accumulation). Clipping, norms and dynamic loss scaling see the reduced one, so that
    /// all processes make the same update, bit for bit. With one process nothing changes.
    ///
    /// Each process computes the loss of its own rows. [`all_reduce`](Self::all_reduce) weighs them by their
    /// tokens; without it, the gradient is the mean over the processes, as with torch's `DistributedDataParallel`.
    ///
    /// All get the adapter's weights of rank 0 here. The frozen weights, the selection, the settings and the state of
    /// the optimiser must be the same on all: load a state before, on each of them. Afterwards, call the same
    /// methods on all, with the same rates. Several optimisers of one model
    /// ([`optimizer_for`](crate::LnTuningModel::optimizer_for)) each join the group, on all processes in the same order;
    /// [`all_reduce_mixed`](Self::all_reduce_mixed) then reduces them at once.
    ///
    /// # Errors
    /// `Distributed`, on all processes, if they do not fit together, and says who differs in what; or if one ends or
    /// does not answer in time. As for [`step`](Self::step) if the adapter cannot be trained.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tch::{nn, nn::Module, Device, Kind, Tensor};
    /// # use ln_tuning::{distributed::ProcessGroup, AdamW, LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # let norm = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// # let rows = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
    /// # let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// // Under `torchrun`: ProcessGroup::from_env()?
    /// let group = Arc::new(ProcessGroup::alone());
    /// let mut opt = tuned.optimizer(AdamW::default(), 5e-3)?;
    /// opt.set_process_group(group.clone())?;
    /// // Every process takes other rows.
    /// let own = rows.slice(0, group.rank() as i64, None, group.world_size() as i64);
    /// opt.backward_step(&norm.forward(&own).square().mean(Kind::Float))?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    #[doc(alias = "DistributedDataParallel")]
    pub fn set_process_group(&mut self, group: Arc<ProcessGroup>) -> Result<()> {
        if group.world_size() > 1 {
            self.with_adapter(|this, attachment| {
                this.check(attachment)?;
                let facts = this.facts(attachment)?;
                group.verify_equal(facts.iter().map(|(name, fact)| (*name, fact.as_str())))?;
                let adapter = attachment.adapter_mut(&this.adapter)?;
                group.broadcast(&mut adapter.flat.master().shallow_clone(), 0)?;
                for (_, buffer) in &adapter.buffers {
                    group.broadcast(&mut buffer.shallow_clone(), 0)?;
                }
                adapter.flat.publish()?;
                attachment.outdate(&this.adapter, |_| true)
            })?;
        }
        self.ranks.group = Some(group);
        self.ranks.renew();
        Ok(())
    }

    /// All that must be the same on all ranks, in words.
    fn facts(&mut self, attachment: &mut Attachment) -> Result<Vec<(&'static str, String)>> {
        let adapter = attachment.current(&self.adapter)?;
        let (mut tensors, mut elements) = (Digest::new(), 0);
        for (slot, variable) in adapter.flat.slots().iter().zip(attachment.trained(&self.adapter)?)
        {
            tensors.add(format!("{} {:?} {:?}", variable.name, slot.shape, slot.kind).as_bytes());
            elements += slot.len;
        }
        let mut frozen = Digest::new();
        // The adapter replaces the others: a new head, say, has random weights on each rank.
        let own: Vec<usize> = adapter.storages().map(|(variable, _)| variable).collect();
        attachment.samples.bytes(&own).for_each(|sample| frozen.add(sample));
        let state = if self.state.is_new() {
            "none".into()
        } else {
            let mut digest = Digest::new();
            let names: Vec<String> =
                attachment.trained(&self.adapter)?.map(|variable| variable.name.clone()).collect();
            for (key, tensor) in
                self.state.save(&attachment.adapter(&self.adapter)?.flat, &names)?
            {
                digest.add(key.as_bytes());
                digest.add(&bytes_of(&tensor.f_to_device(Device::Cpu)?)?);
            }
            digest.text()
        };
        let scale = match &self.loss_scale {
            LossScale::Fixed(scale) => format!("{scale}"),
            LossScale::Dynamic(scaler) => {
                format!("dynamic, {}", scaler.scale().f_double_value(&[])?)
            }
        };
        let config = serde_json::from_str::<serde_json::Value>(&adapter.config.to_json());
        let mut config = config.unwrap_or_default();
        // A directory may have another name on another machine.
        config["base_model_name_or_path"] = serde_json::Value::Null;
        Ok(vec![
            ("number of weights", elements.to_string()),
            ("names, shapes and kinds of weights", tensors.text()),
            ("precision of weights", format!("{:?}", adapter.flat.master().f_kind()?)),
            ("adapter configuration", config.to_string()),
            ("frozen weights", frozen.text()),
            ("optimizer state", state),
            ("optimizer settings", format!("{:?}", self.groups)),
            ("accumulation", self.accumulation.to_string()),
            ("loss scale", scale),
        ])
    }
}
