//! Several adapters that train at once, in batches whose rows name them.

use tch::{no_grad, with_grad, Tensor};

use super::backward::{check_loss, scaled};
use super::loss_scale::{Factor, LossScale};
use super::optimizer::Optimizer;
use crate::adapter::attachment::Attachment;
use crate::adapter::flat::copy_of;
use crate::adapter::weights::Adapter;
use crate::autograd::recompute::{Recompute, Tape};
use crate::error::{refusal, refuse, Result};
use crate::mixed::{OwnMatrix, Pass};

impl Optimizer {
    /// Adds to each of these optimisers, of [`optimizer_for`](crate::LnTuningModel::optimizer_for), the gradient of a
    /// loss with respect to its own adapter, from one backward pass: that of a batch whose rows name the adapters
    /// (`Inputs::adapter_names`). The loss is usually the sum of those of the adapters; the gradient of each depends on
    /// its own rows only, so that one that diverges harms no other. Each then clips and steps on its own. Heads,
    /// embeddings and other matrices of an adapter train as well, from products of its own rows.
    ///
    /// In f32 the gradients are those of each adapter alone but for rounding, about 1e-6 of them: libtorch multiplies
    /// many rows in other blocks than few, and a norm of several adapters is computed in two steps. To the bit they are
    /// those of one adapter after the other, with `set_adapter`.
    ///
    /// # Errors
    /// `NoGradient` if the loss is no scalar, or none of the adapters is named by the batch; `InvalidState` if the
    /// optimisers are of several models, of one adapter twice, of an active adapter alone
    /// ([`optimizer`](crate::LnTuningModel::optimizer)), or as [`backward`](Self::backward); `InvalidArgument` if their
    /// loss scales differ or are dynamic.
    ///
    /// ```no_run
    /// use ln_tuning::loss::{LinearCrossEntropy, Reduction};
    /// use ln_tuning::models::{Decoder, Inputs, Model};
    /// use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
    /// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2, 3], [1, 2, 3]]);
    /// let (vs, model) = Decoder::from_pretrained("Llama-3.2-1B", tch::Device::Cpu, None)?;
    /// let mut tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "slow")?;
    /// tuned.add_adapter("fast", LnTuningConfig::default())?;
    /// let mut optimizers = [
    ///     tuned.optimizer_for("slow", AdamW::default(), 1e-3)?,
    ///     tuned.optimizer_for("fast", AdamW::default(), 1e-2)?,
    /// ];
    /// let rows = LinearCrossEntropy::default().reduction(Reduction::SumPerRow);
    /// for optimizer in &mut optimizers {
    ///     optimizer.zero_grad()?;
    /// }
    /// let inputs = Inputs::new(&ids).adapter_names(&["slow", "fast"]).train(true);
    /// let losses = model.loss(inputs, &ids, &rows)?; // [2]
    /// Optimizer::backward_mixed(&mut optimizers, &losses.sum(tch::Kind::Float))?;
    /// for optimizer in &mut optimizers {
    ///     optimizer.clip_grad_norm(1.)?;
    ///     optimizer.step()?;
    /// }
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn backward_mixed<'o>(
        optimizers: impl IntoIterator<Item = &'o mut Optimizer>,
        loss: &Tensor,
    ) -> Result<()> {
        let optimizers = &mut Vec::from_iter(optimizers)[..];
        check_loss(loss)?;
        let factor = shared_factor(optimizers)?;
        let scaled = with_grad(|| factor.scaled(loss, 1))?;
        let passes = take_passes(optimizers)?;
        let inputs = tensors(&passes);
        let found = Tensor::f_run_backward(&[scaled], &inputs, false, false)?;
        add(optimizers, &passes, found, &factor)
    }

    /// [`backward_mixed`](Self::backward_mixed) with block checkpointing, of the sum of several losses: `forward`
    /// computes them and runs its blocks through the tape. Returns the losses.
    ///
    /// # Errors
    /// As [`backward_mixed`](Self::backward_mixed), and those of `forward`.
    pub fn backward_mixed_recompute<'a, 'o>(
        optimizers: impl IntoIterator<Item = &'o mut Optimizer>,
        recompute: &Recompute,
        forward: impl FnOnce(&mut Tape<'a>) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let optimizers = &mut Vec::from_iter(optimizers)[..];
        let factor = shared_factor(optimizers)?;
        let scaled = |tape: &mut Tape<'a>| scaled(&forward(tape)?, &factor);
        let mut passes = Ok(Vec::new());
        let (mut losses, found) = recompute.gradients_of_made(scaled, || {
            passes = take_passes(optimizers);
            passes.as_ref().map_or(Vec::new(), |passes| tensors(passes))
        })?;
        add(optimizers, &passes?, found, &factor)?;
        no_grad(|| losses.iter_mut().try_for_each(|loss| factor.unscale(loss)))?;
        Ok(losses)
    }
}

/// The loss scale of all.
fn shared_factor(optimizers: &[&mut Optimizer]) -> Result<Factor> {
    let scale = |optimizer: &&mut Optimizer| match &optimizer.loss_scale {
        LossScale::Fixed(scale) => Some(*scale),
        LossScale::Dynamic(_) => None,
    };
    let first = optimizers.first().ok_or_else(|| {
        refusal!(InvalidArgument, "there is no optimizer: give one for each adapter that trains")
    })?;
    let shared = scale(first).filter(|first| optimizers.iter().all(|o| scale(o) == Some(*first)));
    match shared {
        Some(scale) => Ok(Factor::Number(scale)),
        None => Err(refusal!(
            InvalidArgument,
            "the loss scales of optimizers that train at once differ, or are dynamic: give all one number with \
             `set_loss_scale`"
        )),
    }
}

/// The forward passes since the last backward pass.
fn take_passes(optimizers: &mut [&mut Optimizer]) -> Result<Vec<Pass>> {
    let mut names: Vec<&str> = optimizers.iter().map(|o| o.adapter.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        refuse!(
            InvalidState,
            "there are two optimizers of adapter '{}': give one for each adapter",
            twice[0]
        );
    }
    let mut passes = Vec::new();
    for optimizer in optimizers {
        optimizer.with_adapter(|this, attachment| {
            if !this.by_name {
                refuse!(
                    InvalidState,
                    "the optimizer of adapter '{}' is one of the active adapter: make it with `optimizer_for`",
                    this.adapter
                );
            }
            this.check(attachment)?;
            passes.append(&mut attachment.passes);
            Ok(())
        })?;
    }
    if passes.is_empty() {
        refuse!(
            NoGradient,
            "no batch has named these adapters since the last backward pass: give their names to \
             `Inputs::adapter_names`, outside of `no_grad`"
        );
    }
    Ok(passes)
}

fn tensors(passes: &[Pass]) -> Vec<Tensor> {
    let of_pass = |pass: &Pass| {
        let vectors = pass.vectors.iter().map(|(_, tensor)| tensor.shallow_clone());
        let matrices = pass.matrices.iter().map(|own| own.tensor.shallow_clone());
        vectors.chain(matrices).collect::<Vec<Tensor>>()
    };
    passes.iter().flat_map(of_pass).collect()
}

/// Gives each optimiser the gradients of its rows.
fn add(
    optimizers: &mut [&mut Optimizer],
    passes: &[Pass],
    found: Vec<Tensor>,
    factor: &Factor,
) -> Result<()> {
    if !found.iter().any(Tensor::defined) {
        refuse!(
            NoGradient,
            "the loss depends on no weight of the adapters that its batch names: check the selection"
        );
    }
    let mut found = found.into_iter();
    for pass in passes {
        let own: Vec<Tensor> = found.by_ref().take(pass.vectors.len()).collect();
        let matrices: Vec<Tensor> = found.by_ref().take(pass.matrices.len()).collect();
        let mut known: Vec<(Vec<usize>, Tensor)> = Vec::new();
        for optimizer in optimizers.iter_mut() {
            let name = optimizer.adapter.clone();
            let choices = (0..).zip(&pass.names).filter(|(_, of)| **of == name);
            let choices: Vec<i64> = choices.map(|(choice, _)| choice).collect();
            if choices.is_empty() {
                continue;
            }
            optimizer.with_adapter(|this, attachment| {
                let adapter = attachment.adapter(&this.adapter)?;
                if adapter.flat.slots().iter().any(|slot| slot.shape.len() != 1) {
                    let all = by_slot(adapter, (&name, &choices), pass, &own, &matrices)?;
                    return this.add_slots(attachment, &all, &factor);
                }
                let at = known.iter().position(|(slots, _)| *slots == adapter.slot_variables);
                let (_, all) = match at {
                    Some(at) => &known[at],
                    None => {
                        let all = in_layout(adapter, pass, &own)?;
                        known.push((adapter.slot_variables.clone(), all));
                        &known[known.len() - 1]
                    }
                };
                let mut gradient = of_choices(all, &choices)?;
                factor.unscale(&mut gradient)?;
                this.add_whole(attachment, pass, &own, &gradient)
            })?;
        }
    }
    Ok(())
}

/// `[choices, size]`, in f32 at least, in the layout of an adapter.
fn in_layout(adapter: &Adapter, pass: &Pass, found: &[Tensor]) -> Result<Tensor> {
    let of_slot = |variable: &usize| {
        let at = pass.vectors.iter().position(|(other, _)| other == variable);
        at.map(|at| &found[at]).filter(|gradient| gradient.defined())
    };
    let slots: Vec<Option<&Tensor>> = adapter.slot_variables.iter().map(of_slot).collect();
    adapter.flat.gathered_rows(&slots, pass.names.len() as i64)
}

/// The gradient of each slot of an adapter with matrices, whose rows have these choices; undefined where there is none.
fn by_slot(
    adapter: &Adapter,
    (name, choices): (&str, &[i64]),
    pass: &Pass,
    vectors: &[Tensor],
    matrices: &[Tensor],
) -> Result<Vec<Tensor>> {
    let slots = adapter.slot_variables.iter().map(|variable| {
        if let Some(at) = pass.vectors.iter().position(|(other, _)| other == variable) {
            let all = Some(&vectors[at]).filter(|all| all.defined());
            return all.map_or(Ok(Tensor::new()), |all| of_choices(all, choices));
        }
        let is_own = |own: &OwnMatrix| own.variable == *variable && own.adapter == name;
        let at = pass.matrices.iter().position(is_own);
        Ok(at.map_or_else(Tensor::new, |at| matrices[at].shallow_clone()))
    });
    slots.collect()
}

/// The sum over some rows.
fn of_choices(all: &Tensor, choices: &[i64]) -> Result<Tensor> {
    if let [choice] = choices {
        return copy_of(&all.f_select(0, *choice)?);
    }
    let neighbours = choices.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let own = if neighbours {
        all.f_narrow(0, choices[0], choices.len() as i64)?
    } else {
        let index = Tensor::f_from_slice(choices)?.f_to_device(all.device())?;
        all.f_index_select(0, &index)?
    };
    Ok(own.f_sum_dim_intlist([0i64].as_slice(), false, all.f_kind()?)?)
}

impl Optimizer {
    /// Adds the gradient of each slot.
    fn add_slots(
        &mut self,
        attachment: &mut Attachment,
        found: &[Tensor],
        factor: &Factor,
    ) -> Result<()> {
        let (adapter, leaves) = attachment.graded(&self.adapter)?;
        adapter.gradients.take_in(&adapter.flat, &leaves)?;
        adapter.gradients.add(&adapter.flat, &leaves, found, |sum| factor.unscale(sum))?;
        self.ranks.renew();
        Ok(())
    }

    /// Adds a gradient in the layout of the adapter.
    fn add_whole(
        &mut self,
        attachment: &mut Attachment,
        pass: &Pass,
        found: &[Tensor],
        gradient: &Tensor,
    ) -> Result<()> {
        let (adapter, leaves) = attachment.graded(&self.adapter)?;
        let present = adapter.slot_variables.iter().map(|variable| {
            let at = pass.vectors.iter().position(|(other, _)| other == variable);
            at.is_some_and(|at| found[at].defined())
        });
        let present: Vec<bool> = present.collect();
        adapter.gradients.take_in(&adapter.flat, &leaves)?;
        adapter.gradients.add_whole(&adapter.flat, &leaves, gradient, &present)?;
        self.ranks.renew();
        Ok(())
    }
}
