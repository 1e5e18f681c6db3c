//! The gradient of all processes of a group, in place of that of one: one all-reduce per update.

use tch::Tensor;

use super::optimizer::Optimizer;
use crate::adapter::attachment::Attachment;
use crate::error::{refuse, Result};

/// The loss of one process, and the number of tokens that it is a mean over.
type Share<'a> = (&'a Tensor, i64);

impl Optimizer {
    /// Makes the gradients those of all processes of the group (`set_process_group`), weighted by their tokens, and
    /// gives the mean loss over all tokens, a scalar on the device of `loss`, and their number.
    ///
    /// `loss` is that of this process, a mean over its `tokens` targets, whose gradient is here by
    /// [`backward`](Self::backward) or another way. The gradient is then that of the mean over the targets of all,
    /// however unequal their numbers are. A process that has none, or no batch any more, calls this with 0 tokens: its
    /// loss and gradient do not count. Clipping, norms and the step come after it. Where there is no group, nothing
    /// changes.
    ///
    /// Without this call, the first of [`clip_grad_norm`](Self::clip_grad_norm), [`grad_norm`](Self::grad_norm),
    /// [`step`](Self::step) and their like takes the mean over the processes, as DDP does. Either way there is one
    /// all-reduce per update, whatever was accumulated.
    ///
    /// # Errors
    /// `InvalidArgument` if `tokens` is negative; `NoGradient` if `loss` is not a scalar; `Distributed` if another
    /// process ends or does not answer in time, or only some of them call this. Gradients and weights are then as before.
    ///
    /// ```
    /// # use tch::{nn, nn::Module, Device, Kind, Tensor};
    /// # use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # let norm = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// # let x = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
    /// # let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// # let mut opt = tuned.optimizer(AdamW::default(), 5e-3)?;
    /// opt.zero_grad()?;
    /// let loss = norm.forward(&x).square().mean(Kind::Float);
    /// opt.backward(&loss)?;
    /// let (loss, tokens) = opt.all_reduce(&loss, 8)?;
    /// let norm = opt.clip_grad_norm(1.0)?;
    /// opt.step()?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    #[doc(alias = "average_tokens_across_devices")]
    pub fn all_reduce(&mut self, loss: &Tensor, tokens: i64) -> Result<(Tensor, i64)> {
        if tokens < 0 {
            refuse!(InvalidArgument, "a loss over {tokens} tokens, expected 0 or more");
        }
        if !loss.defined() || loss.numel() != 1 {
            refuse!(NoGradient, "the loss must be a scalar: take its mean or sum");
        }
        let alone = (loss.f_detach()?, tokens);
        self.with_adapter(|this, attachment| {
            this.followed(attachment)?;
            Ok(this.reduce(attachment, Some((loss, tokens)))?.unwrap_or(alone))
        })
    }
}

#[cfg(not(feature = "distributed"))]
impl Optimizer {
    /// Without a group, the gradient of this process is that of all.
    pub(super) fn reduce(
        &mut self,
        _: &mut Attachment,
        _: Option<Share>,
    ) -> Result<Option<(Tensor, i64)>> {
        Ok(None)
    }
}

#[cfg(feature = "distributed")]
mod with_group {
    use std::sync::Arc;

    use tch::{no_grad, Device, Kind};

    use super::*;
    use crate::adapter::weights::Adapter;
    use crate::distributed::{digest::Digest, ProcessGroup};
    use crate::kernels::number::WithNumber;
    use crate::optim::loss_scale::LossScale;
    use crate::storage::safetensors::bytes_of;

    /// Numbers of each rank in the tail of the buffer: the loss times the tokens, and the tokens, each as a large and a
    /// small part, so that f32 loses nothing.
    const OWN: usize = 4;
    /// The large part of a number of tokens counts in these.
    const LARGE: i64 = 1 << 20;

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
        /// methods on all, with the same rates.
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
                    attachment.check_trainable(&this.adapter)?;
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
            for (slot, variable) in
                adapter.flat.slots().iter().zip(attachment.trained(&self.adapter)?)
            {
                tensors
                    .add(format!("{} {:?} {:?}", variable.name, slot.shape, slot.kind).as_bytes());
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
                let names: Vec<String> = attachment
                    .trained(&self.adapter)?
                    .map(|variable| variable.name.clone())
                    .collect();
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

        /// Makes the gradients those of all processes, unless they are already. Gives the loss and the tokens of all if
        /// those of this process are given, and there are others.
        pub(in crate::optim) fn reduce(
            &mut self,
            attachment: &mut Attachment,
            share: Option<Share>,
        ) -> Result<Option<(Tensor, i64)>> {
            let Some(group) = self.ranks.group.clone().filter(|group| group.world_size() > 1)
            else {
                return Ok(None);
            };
            if self.ranks.reduced && share.is_none() {
                return Ok(None);
            }
            if self.ranks.reduced {
                refuse!(
                    InvalidState,
                    "the gradients are reduced already: call `all_reduce` once per update, after the backward passes and \
                     before clipping"
                );
            }
            let (adapter, leaves) = attachment.graded(&self.adapter)?;
            let Adapter { flat, gradients, .. } = adapter;
            let (gradient, present) = gradients.with_presence(flat)?;
            let (elements, slots) = (gradient.size1()?, present.len());
            let (rank, world_size) = (group.rank(), group.world_size());
            let tail = Tail { present, rank, world_size, share: share.map(totals).transpose()? };
            let tail = Tensor::f_from_slice(&tail.numbers())?.f_to_kind(gradient.f_kind()?)?;
            let size = elements + tail.size1()?;
            let mut buffer = Tensor::f_zeros([size], (gradient.f_kind()?, Device::Cpu))?;
            let mut own = buffer.f_narrow(0, 0, elements)?;
            match share {
                Some((_, 0)) => (),
                Some((_, tokens)) => own.f_copy_(&gradient.f_mul_number(tokens as f64)?)?,
                None => own.f_copy_(&gradient)?,
            }
            buffer.f_narrow(0, elements, size - elements)?.f_copy_(&tail)?;
            group.sum(&mut buffer)?;
            let tail = buffer.f_narrow(0, elements, size - elements)?.f_to_kind(Kind::Double)?;
            let tail = Vec::<f64>::try_from(&tail)?;
            let (present, rest) = tail.split_at(slots);
            let (weighted, of_ranks) = rest.split_at(1);
            let weighted = weighted[0] as usize;
            if weighted != if share.is_some() { world_size } else { 0 } {
                refuse!(
                    Distributed,
                    "{weighted} of {world_size} ranks call `all_reduce` with their loss and tokens before the step, \
                     expected all or none"
                );
            }
            let (sum, tokens) = of_all(of_ranks);
            let total = if share.is_some() { tokens.max(1) as f64 } else { world_size as f64 };
            let _ = no_grad(|| own.f_div_scalar_(total))?;
            let present: Vec<bool> = present.iter().map(|count| *count > 0.).collect();
            gradients.overwrite(flat, &leaves, &own, &present)?;
            self.ranks.reduced = true;
            let Some((loss, _)) = share else { return Ok(None) };
            let kind = if loss.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
            let mean = Tensor::from(sum / total).f_to_kind(kind)?.f_to_device(loss.device())?;
            Ok(Some((mean, tokens)))
        }
    }

    /// Numbers behind the gradient in the buffer.
    struct Tail {
        present: Vec<bool>,
        rank: usize,
        world_size: usize,
        /// The loss times the tokens, and the tokens.
        share: Option<(f64, i64)>,
    }

    impl Tail {
        /// One per slot, the number of ranks that weigh, and those of each rank, which only that rank writes.
        fn numbers(&self) -> Vec<f64> {
            let mut numbers: Vec<f64> =
                self.present.iter().map(|present| f64::from(u8::from(*present))).collect();
            numbers.push(f64::from(u8::from(self.share.is_some())));
            let mut of_ranks = vec![0.; OWN * self.world_size];
            if let Some((sum, tokens)) = self.share {
                let large = f64::from(sum as f32);
                let small = if large.is_finite() { sum - large } else { 0. };
                let parts = [large, small, (tokens / LARGE) as f64, (tokens % LARGE) as f64];
                of_ranks[OWN * self.rank..OWN * (self.rank + 1)].copy_from_slice(&parts);
            }
            numbers.extend(of_ranks);
            numbers
        }
    }

    /// The loss times the tokens, and the tokens. The loss over no tokens may be anything, and does not count.
    fn totals((loss, tokens): Share) -> Result<(f64, i64)> {
        let loss = if tokens == 0 { 0. } else { loss.f_double_value(&[])? };
        Ok((loss * tokens as f64, tokens))
    }

    /// The sums over all ranks, in their order.
    fn of_all(of_ranks: &[f64]) -> (f64, i64) {
        let (mut sum, mut tokens) = (0., 0);
        for own in of_ranks.chunks_exact(OWN) {
            sum += own[0] + own[1];
            tokens += own[2] as i64 * LARGE + own[3] as i64;
        }
        (sum, tokens)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn numbers_of_a_rank_pass_through_f32_unharmed() {
            for (sum, tokens) in
                [(0., 0), (1. / 3. * 1e9, (1 << 40) + 12345), (-7.1, 1), (f64::INFINITY, 3)]
            {
                let tail = Tail {
                    present: vec![true, false],
                    rank: 1,
                    world_size: 3,
                    share: Some((sum, tokens)),
                };
                let numbers: Vec<f64> =
                    tail.numbers().iter().map(|number| f64::from(*number as f32)).collect();
                assert_eq!(numbers[..3], [1., 0., 1.]);
                let (found, count) = of_all(&numbers[3..]);
                assert!(
                    found == sum || (found - sum).abs() <= sum.abs() * 1e-13,
                    "{found} for {sum}"
                );
                assert_eq!(count, tokens);
            }
        }
    }
}
