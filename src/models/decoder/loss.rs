//! The loss of next tokens, with block checkpointing or without.

use tch::{Device, Kind, Tensor};

use super::model::Decoder;
use crate::autograd::loss::{LinearCrossEntropy, Reduction};
use crate::autograd::recompute::Tape;
use crate::device::trace::sent_numbers;
use crate::device::transfer::sent;
use crate::error::{refuse, Result};
use crate::kernels::number::{self, WithNumber};
use crate::models::inputs::Inputs;
use crate::models::nn::{Rows, Stay, Tied};

impl Decoder {
    /// The cross-entropy of each token given those before it. `labels` `[batch, length]` are the ids once more, with
    /// `ignore_index` (-100) for tokens that are no target: the shift by one happens here, as in transformers. In
    /// packed `documents` the first token of a document is no target either. Logits are never held for the whole batch.
    ///
    /// The head's bias, its scale and its cap are the model's; keep the labels on the CPU ([`LinearCrossEntropy`]).
    ///
    /// # Errors
    /// As [`hidden_states`](crate::models::Model::hidden_states); `ShapeMismatch` for labels of another shape than the
    /// ids'; `InvalidArgument` if `loss` sets `logit_scale` or `logit_cap`; what [`LinearCrossEntropy::compute`] says.
    ///
    /// ```no_run
    /// use ln_tuning::models::{Decoder, Model};
    /// use ln_tuning::{loss::LinearCrossEntropy, AdamW, LnTuningConfig, LnTuningModel};
    /// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2, 3]]);
    /// let (vs, model) = Decoder::from_pretrained("Llama-3.2-1B", tch::Device::Cpu, None)?;
    /// let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// let mut opt = tuned.optimizer(AdamW::default(), 1e-4)?;
    /// let loss = model.loss(&ids, &ids, &LinearCrossEntropy::default())?;
    /// opt.backward_step(&loss)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn loss<'i>(
        &self,
        inputs: impl Into<Inputs<'i>>,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
    ) -> Result<Tensor> {
        self.loss_with(inputs, labels, loss, &mut Tape::off())
    }

    /// [`loss`](Self::loss) with block checkpointing: the blocks are run through the tape of
    /// [`Recompute::gradients`](crate::recompute::Recompute::gradients).
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    ///
    /// ```no_run
    /// # use ln_tuning::models::{Decoder, Model};
    /// # use ln_tuning::{loss::LinearCrossEntropy, AdamW, LnTuningConfig, LnTuningModel};
    /// # use ln_tuning::recompute::Recompute;
    /// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2, 3]]);
    /// # let (vs, model) = Decoder::from_pretrained("Llama-3.2-1B", tch::Device::Cpu, None)?;
    /// # let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// # let mut opt = tuned.optimizer(AdamW::default(), 1e-4)?;
    /// # let cross_entropy = LinearCrossEntropy::default();
    /// opt.zero_grad()?;
    /// let loss = opt.backward_recompute(&Recompute::default(), |tape| {
    ///     model.loss_with(&ids, &ids, &cross_entropy, tape)
    /// })?;
    /// opt.step()?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn loss_with<'i, 'm>(
        &'m self,
        inputs: impl Into<Inputs<'i>>,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor> {
        Ok(self.losses_with(&[(inputs.into(), labels)], loss, tape)?.swap_remove(0))
    }

    /// [`loss_with`](Self::loss_with) of several batches, each with its labels: the batches of one step, for
    /// [`Optimizer::backward_recompute_many`](crate::Optimizer::backward_recompute_many). All of them go through a
    /// block before the next, and backward too, so that each block's weights are fetched twice in a step, however many
    /// batches it has. Activations are held for one block and one batch, beside the inputs of each block for all
    /// batches: `layers × tokens of the step × hidden_size` numbers.
    ///
    /// Losses and gradients are those of `loss_with` batch by batch, bit for bit in f32 if a weight has one place in
    /// the model. Dropout draws other numbers.
    ///
    /// # Errors
    /// As [`loss`](Self::loss), for each batch; `InvalidState` for a model that is streamed to a device, without block
    /// checkpointing of all blocks.
    ///
    /// ```no_run
    /// # use ln_tuning::models::{Decoder, Model};
    /// # use ln_tuning::loss::{LinearCrossEntropy, Reduction};
    /// # use ln_tuning::{recompute::Recompute, AdamW, LnTuningConfig, LnTuningModel};
    /// # let (a, b) = (tch::Tensor::from_slice2(&[[1_i64, 2, 3]]), tch::Tensor::from_slice2(&[[4_i64, 5]]));
    /// # let (vs, model) = Decoder::from_pretrained("Llama-3.2-1B", tch::Device::Cpu, None)?;
    /// # let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    /// # let mut opt = tuned.optimizer(AdamW::default(), 1e-4)?;
    /// let targets = 3; // of both batches
    /// let cross_entropy = LinearCrossEntropy::default().reduction(Reduction::SumOver(targets));
    /// opt.zero_grad()?;
    /// let losses = opt.backward_recompute_many(&Recompute::default(), |tape| {
    ///     model.losses_with(&[((&a).into(), &a), ((&b).into(), &b)], &cross_entropy, tape)
    /// })?;
    /// opt.step()?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn losses_with<'m>(
        &'m self,
        batches: &[(Inputs, &Tensor)],
        loss: &LinearCrossEntropy,
        tape: &mut Tape<'m>,
    ) -> Result<Vec<Tensor>> {
        if self.is_streamed()
            && self.embed.variable().device() != Device::Cpu
            && !tape.keeps_nothing()?
        {
            refuse!(
                InvalidState,
                "the weights are streamed: before a plain backward pass, those of most blocks have left the device. \
                 Train with Recompute of all blocks, which fetches them again, or evaluate under no_grad"
            );
        }
        let targets = batches.iter().map(|(inputs, labels)| self.targets(inputs, labels, loss));
        let targets = targets.collect::<Result<Vec<_>>>()?;
        let rows = batches.iter().map(|(inputs, _)| inputs.named_rows(&self.sites));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let inputs = batches.iter().zip(&rows);
        let inputs: Vec<Inputs> =
            inputs.map(|((inputs, _), rows)| inputs.with_rows(rows.as_ref())).collect();
        let hidden = self.hidden_states_of(&inputs, tape)?;
        self.head_stay.iter().try_for_each(Stay::enter)?;
        let (weight, bias) = self.head.language_model()?;
        let loss = loss.logit_scale(self.config.logit_scale).logit_cap(self.config.logit_cap);
        let losses = inputs.iter().zip(&hidden).zip(&targets);
        let losses = losses.map(|((inputs, hidden), (targets, left_out))| {
            let _rows = inputs.enter();
            if let Some(rows) = weight.rows(bias) {
                return by_row(&loss, &rows, hidden, (weight, bias), (targets, left_out.as_ref()));
            }
            let weight = weight.get().of_head()?;
            loss.compute_without(hidden, &weight, bias, targets, left_out.as_ref())
        });
        losses.collect()
    }

    /// The target at each place: the label of the next. And the places that begin no pair, where only a device knows
    /// them: with labels on the CPU, and documents elsewhere.
    fn targets(
        &self,
        inputs: &Inputs,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let ids = inputs.needed_ids()?;
        if labels.size() != ids.size() {
            refuse!(
                ShapeMismatch,
                "the labels have shape {:?}, expected that of the ids, {:?}",
                labels.size(),
                ids.size()
            );
        }
        if loss.logit_scale != 1. || loss.logit_cap.is_some() {
            refuse!(
                InvalidArgument,
                "'logit_scale' and 'logit_cap' are those of the model: leave them unset"
            );
        }
        let labels = labels.f_to_kind(Kind::Int64)?;
        let (batch, length) = labels.size2()?;
        let none = number::full([batch, 1], loss.ignore_index, (Kind::Int64, labels.device()))?;
        if length < 2 {
            return Ok((none.f_narrow(1, 0, length)?, None));
        }
        let mut next = labels.f_narrow(1, 1, length - 1)?;
        let mut left_out = None;
        if let Some(documents) = inputs.documents {
            let (this, that) =
                (documents.f_narrow(1, 0, length - 1)?, documents.f_narrow(1, 1, length - 1)?);
            let starts = that.f_ne_tensor(&this)?;
            if labels.device() == Device::Cpu && starts.device() != Device::Cpu {
                left_out = Some(starts.f_constant_pad_nd([0, 1])?);
            } else {
                let starts = sent(&starts, labels.device())?;
                next = next.f_fill_where(&starts, loss.ignore_index)?;
            }
        }
        // Places behind which there is nothing are masked rather than cut off: no copy of the hidden states.
        Ok((Tensor::f_cat(&[&next, &none], 1)?, left_out))
    }
}

/// The loss where rows have a head of their own: the sum of those of each adapter's rows.
fn by_row(
    loss: &LinearCrossEntropy,
    rows: &Rows,
    hidden: &Tensor,
    (weight, bias): (&Tied, Option<&Tensor>),
    (targets, left_out): (&Tensor, Option<&Tensor>),
) -> Result<Tensor> {
    if loss.reduction == Reduction::SumPerRow {
        refuse!(
            Unsupported,
            "rows have heads of their own, for which there is no loss per row (`SumPerRow`): `Sum` gives each adapter the \
             gradient of its own rows all the same; or compute a loss for the rows of each"
        );
    }
    let parts = rows.lead().len() as i64;
    let sum = loss.reduction(Reduction::Sum);
    let mut total: Option<Tensor> = None;
    for (adapter, places) in rows.groups(&weight.sharing(rows, bias)?) {
        let of_group = |x: &Tensor| -> Result<Tensor> {
            let places = sent_numbers(&places, x.device())?;
            Ok(x.f_flatten(0, parts - 1)?.f_index_select(0, &places)?)
        };
        let weight = weight.of_adapter(rows, adapter)?.of_head()?;
        let bias = bias.map(|bias| rows.of(bias, adapter)).transpose()?;
        let left_out = left_out.map(of_group).transpose()?;
        let (hidden, targets) = (of_group(hidden)?, of_group(targets)?);
        let own =
            sum.compute_without(&hidden, &weight, bias.as_ref(), &targets, left_out.as_ref())?;
        total = Some(match total {
            Some(total) => total.f_add(&own)?,
            None => own,
        });
    }
    let total = total.unwrap_or_default();
    match loss.reduction {
        Reduction::Sum | Reduction::SumPerRow => Ok(total),
        Reduction::SumOver(count) => Ok(total.f_div_number(count as f64)?),
        Reduction::Mean => {
            let mut counts = targets.f_ne_number(loss.ignore_index)?;
            if let Some(left_out) = left_out {
                let counted = left_out.f_logical_not()?;
                counts = counts.f_to_device(counted.device())?.f_logical_and(&counted)?;
            }
            let count = counts.f_sum(total.f_kind()?)?.f_at_least(1.)?;
            Ok(total.f_div(&sent(&count, total.device())?)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::context::{context, masks};
    use super::*;
    use crate::models::nn::Places;
    use crate::models::nn::{run, Through};
    use crate::models::{DecoderConfig, Model, ModelConfig};
    use serde_json::json;
    use tch::nn::VarStore;

    #[test]
    fn nothing_below_the_lowest_tensor_that_trains_keeps_a_graph() {
        let config = json!({
            "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 16,
        });
        let vs = VarStore::new(Device::Cpu);
        let config = DecoderConfig::from_value(&config).unwrap();
        let model = Decoder::new(&vs.root(), &config).unwrap();
        let lowest = "model.layers.2.input_layernorm.weight";
        for (name, variable) in vs.variables() {
            let _ = variable.set_requires_grad(name == lowest);
        }
        let ids = Tensor::from_slice2(&[[1_i64, 2, 3, 4]]);
        let places = Places {
            start: 0,
            length: 4,
            device: Device::Cpu,
            tokens: None,
            documents: None,
            blocks: None,
        };
        let positions = places.positions(false).unwrap();
        let kind = Kind::Float;
        let masks = masks(&config, &places, &positions, &config.windows, kind).unwrap();
        let context = context(&model.ropes, &places, &positions, masks, kind, false).unwrap();
        let context = Rc::new(context);
        let mut hidden = Tensor::randn([1, 4, 8], (Kind::Float, Device::Cpu));
        let mut graphs = Vec::new();
        for block in model.blocks.chunks(1) {
            let mut tape = Tape::off();
            let mut through = Through::Tape(&mut tape);
            hidden = run(block, hidden, &context, None, 0., None, &mut through).unwrap();
            graphs.push(hidden.requires_grad());
        }
        assert_eq!(graphs, [false, false, true, true]);
        // The loss has a graph to the norm, and none where nothing trains above or in the head.
        let loss = LinearCrossEntropy::default();
        assert!(model.loss(&ids, &ids, &loss).unwrap().requires_grad());
        assert!(vs
            .variables()
            .iter()
            .all(|(name, variable)| { variable.requires_grad() == (name == lowest) }));
    }
}
