//! The gradient of all processes of a group, in place of that of one: one all-reduce per update, also of several
//! optimisers.

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
        check_share((loss, tokens))?;
        let alone = (loss.f_detach()?, tokens);
        self.with_adapter(|this, attachment| {
            this.followed(attachment)?;
            Ok(this.reduce(attachment, Some((loss, tokens)))?.unwrap_or(alone))
        })
    }

    /// [`all_reduce`](Self::all_reduce) of several optimisers at once, each with its own loss and tokens: the gradients
    /// of all of them travel in one all-reduce, whether they come from
    /// [`backward_mixed`](Self::backward_mixed) or from adapters that took turns. Gives the mean loss and the tokens of
    /// each. The optimisers, and their order, must be the same on all processes, also where one of them has no batch.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `InvalidArgument` unless there are as many losses as optimisers;
    /// `InvalidState` if the optimisers are of different groups, or their weights of different kinds or devices;
    /// `Distributed`, on all processes, if those of the others are not the same.
    ///
    /// ```
    /// # use tch::{nn, nn::Module, Device, Kind, Tensor};
    /// # use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
    /// # let vs = nn::VarStore::new(Device::Cpu);
    /// # let norm = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    /// # let x = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "a")?;
    /// tuned.add_adapter("b", LnTuningConfig::default())?;
    /// let mut optimizers = [
    ///     tuned.optimizer_for("a", AdamW::default(), 1e-3)?,
    ///     tuned.optimizer_for("b", AdamW::default(), 1e-2)?,
    /// ];
    /// // Each joins the group here: `optimizer.set_process_group(group.clone())?`.
    /// let mut losses = Vec::new();
    /// for (name, optimizer) in ["a", "b"].iter().zip(&mut optimizers) {
    ///     tuned.set_adapter(name)?;
    ///     let loss = norm.forward(&x).square().mean(Kind::Float);
    ///     optimizer.backward(&loss)?;
    ///     losses.push(loss);
    /// }
    /// let shares: Vec<(&Tensor, i64)> = losses.iter().map(|loss| (loss, 8)).collect();
    /// let all = Optimizer::all_reduce_mixed(&mut optimizers, &shares)?;
    /// for optimizer in &mut optimizers {
    ///     optimizer.step()?;
    /// }
    /// assert_eq!(all[1].1, 8);
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn all_reduce_mixed<'o>(
        optimizers: impl IntoIterator<Item = &'o mut Optimizer>,
        shares: &[(&Tensor, i64)],
    ) -> Result<Vec<(Tensor, i64)>> {
        let optimizers = &mut Vec::from_iter(optimizers)[..];
        if optimizers.len() != shares.len() {
            refuse!(
                InvalidArgument,
                "{} losses for {} optimizers, expected one for each",
                shares.len(),
                optimizers.len()
            );
        }
        shares.iter().try_for_each(|share| check_share(*share))?;
        let alone = shares.iter().map(|(loss, tokens)| Ok((loss.f_detach()?, *tokens)));
        let alone = alone.collect::<Result<Vec<_>>>()?;
        Ok(reduce_all(optimizers, shares)?.unwrap_or(alone))
    }
}

fn check_share((loss, tokens): Share) -> Result<()> {
    if tokens < 0 {
        refuse!(InvalidArgument, "a loss over {tokens} tokens, expected 0 or more");
    }
    if !loss.defined() || loss.numel() != 1 {
        refuse!(NoGradient, "the loss must be a scalar: take its mean or sum");
    }
    Ok(())
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

#[cfg(not(feature = "distributed"))]
fn reduce_all(_: &mut [&mut Optimizer], _: &[Share]) -> Result<Option<Vec<(Tensor, i64)>>> {
    Ok(None)
}

#[cfg(feature = "distributed")]
use with_group::reduce_all;

#[cfg(feature = "distributed")]
mod with_group {
    use std::sync::Arc;

    use super::*;
    use crate::adapter::weights::Adapter;
    use crate::distributed::digest::Digest;
    use crate::distributed::ProcessGroup;
    use crate::optim::exchange::{exchange, Part, Whole};

    impl Optimizer {
        /// Makes the gradients those of all processes, unless they are already. Gives the loss and the tokens of all if
        /// those of this process are given, and there are others.
        pub(in crate::optim) fn reduce(
            &mut self,
            attachment: &mut Attachment,
            share: Option<Share>,
        ) -> Result<Option<(Tensor, i64)>> {
            let Some(group) = self.others() else { return Ok(None) };
            if self.ranks.reduced && share.is_none() {
                return Ok(None);
            }
            let part = self.part(attachment, share)?;
            match exchange(&group, &[part])?.pop() {
                Some(whole) => self.take(attachment, whole),
                None => Ok(None),
            }
        }

        /// The group, if there are others in it.
        fn others(&self) -> Option<Arc<ProcessGroup>> {
            self.ranks.group.clone().filter(|group| group.world_size() > 1)
        }

        /// The gradient of this process.
        fn part<'a>(
            &mut self,
            attachment: &mut Attachment,
            share: Option<Share<'a>>,
        ) -> Result<Part<'a>> {
            if self.ranks.reduced {
                refuse!(
                    InvalidState,
                    "the gradients are reduced already: call `all_reduce` once per update, after the backward passes and \
                     before clipping"
                );
            }
            let (Adapter { flat, gradients, .. }, _) = attachment.graded(&self.adapter)?;
            let (gradient, present) = gradients.with_presence(flat)?;
            Ok(Part { gradient, present, share })
        }

        /// Puts the gradient of all processes in place of that of this one.
        fn take(
            &mut self,
            attachment: &mut Attachment,
            whole: Whole,
        ) -> Result<Option<(Tensor, i64)>> {
            let (Adapter { flat, gradients, .. }, leaves) = attachment.graded(&self.adapter)?;
            gradients.overwrite(flat, &leaves, &whole.gradient, &whole.present)?;
            self.ranks.reduced = true;
            Ok(whole.mean)
        }
    }

    /// The loss and the tokens of all processes for each optimiser, whose gradients are then those of all. None if there
    /// are no other processes.
    pub(super) fn reduce_all(
        optimizers: &mut [&mut Optimizer],
        shares: &[Share],
    ) -> Result<Option<Vec<(Tensor, i64)>>> {
        let Some(first) = optimizers.first() else { return Ok(None) };
        let group = first.others();
        let same = |other: &&mut Optimizer| match (&group, other.others()) {
            (Some(group), Some(other)) => Arc::ptr_eq(group, &other),
            (None, None) => true,
            _ => false,
        };
        if !optimizers.iter().all(same) {
            refuse!(
                InvalidState,
                "the optimizers are of different process groups: give each the same with `set_process_group`"
            );
        }
        let Some(group) = group else { return Ok(None) };
        let mut parts = Vec::with_capacity(optimizers.len());
        let mut set = Digest::new();
        for (optimizer, share) in optimizers.iter_mut().zip(shares) {
            let part = optimizer.with_adapter(|this, attachment| {
                this.followed(attachment)?;
                this.part(attachment, Some(*share))
            })?;
            set.add(optimizer.adapter.as_bytes());
            set.add(&part.gradient.size1()?.to_le_bytes());
            parts.push(part);
        }
        let place =
            |part: &Part| Ok::<_, tch::TchError>((part.gradient.f_kind()?, part.gradient.device()));
        let expected = place(&parts[0])?;
        for part in &parts {
            let found = place(part)?;
            if found != expected {
                refuse!(
                    InvalidState,
                    "the optimizers' weights are {expected:?} and {found:?}, expected one kind and one device: reduce them \
                     one by one with `all_reduce`"
                );
            }
        }
        // c10d ends the process if sizes do not fit. They do as long as the optimisers are those of the last time.
        let set = set.text();
        if optimizers.iter().any(|optimizer| optimizer.ranks.set != set) {
            group.verify_equal([("optimizers that reduce at once", set.as_str())])?;
        }
        let wholes = exchange(&group, &parts)?;
        drop(parts);
        let mut all = Vec::with_capacity(optimizers.len());
        for (optimizer, whole) in optimizers.iter_mut().zip(wholes) {
            optimizer.ranks.set.clone_from(&set);
            all.extend(optimizer.with_adapter(|this, attachment| this.take(attachment, whole))?);
        }
        Ok(Some(all))
    }
}
