//! The loss of next tokens, with block checkpointing or without.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::family::Positions;
use super::{Decoder, Inputs};
use crate::error::{Error, ErrorKind, Result};
use crate::loss::LinearCrossEntropy;
use crate::recompute::Tape;

impl Decoder {
    /// The cross-entropy of each token given those before it. `labels` `[batch, length]` are the ids once more, with
    /// `ignore_index` (-100) for tokens that are no target: the shift by one happens here, as in transformers. In packed
    /// `documents` the first token of a document is no target either. Logits are never held for the whole batch.
    ///
    /// The head's bias, its scale and its cap are the model's; keep the labels on the CPU ([`LinearCrossEntropy`]).
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states); `ShapeMismatch` for labels of another shape than the ids';
    /// `InvalidArgument` if `loss` sets `logit_scale` or `logit_cap`; what [`LinearCrossEntropy::compute`] says.
    ///
    /// ```no_run
    /// use ln_tuning::{loss::LinearCrossEntropy, models::Decoder, AdamW, LnTuningConfig, LnTuningModel};
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
        let inputs = inputs.into();
        let targets = self.targets(&inputs, labels, loss)?;
        self.through_head(&self.hidden_states(inputs)?, &targets, loss)
    }

    /// [`loss`](Self::loss) with block checkpointing: the blocks are run through the tape of
    /// [`Recompute::gradients`](crate::recompute::Recompute::gradients).
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    ///
    /// ```no_run
    /// # use ln_tuning::{loss::LinearCrossEntropy, models::Decoder, AdamW, LnTuningConfig, LnTuningModel};
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
        let inputs = inputs.into();
        let targets = self.targets(&inputs, labels, loss)?;
        let tokens = inputs.tokens()?;
        let by_tokens = matches!(self.config.positions, Positions::Learned { by_tokens: true, .. });
        let config = &self.config;
        let hidden =
            self.forward(&inputs, tokens.as_ref(), by_tokens, 0, |layer, hidden, pass| {
                let pass = Rc::clone(pass);
                tape.run(hidden, move |hidden| layer.forward(hidden, &pass, config, None))
            })?;
        self.through_head(&hidden, &targets, loss)
    }

    /// The target at each place: the label of the next.
    fn targets(
        &self,
        inputs: &Inputs,
        labels: &Tensor,
        loss: &LinearCrossEntropy,
    ) -> Result<Tensor> {
        inputs.check()?;
        if labels.size() != inputs.ids.size() {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!(
                    "the labels have shape {:?}, expected that of the ids, {:?}",
                    labels.size(),
                    inputs.ids.size()
                ),
            ));
        }
        if loss.logit_scale != 1. || loss.logit_cap.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "'logit_scale' and 'logit_cap' are those of the model: leave them unset",
            ));
        }
        let labels = labels.f_to_kind(Kind::Int64)?;
        let (batch, length) = labels.size2()?;
        let none = Tensor::f_full([batch, 1], loss.ignore_index, (Kind::Int64, labels.device()))?;
        if length < 2 {
            return Ok(none.f_narrow(1, 0, length)?);
        }
        let mut next = labels.f_narrow(1, 1, length - 1)?;
        if let Some(documents) = inputs.documents {
            let (this, that) =
                (documents.f_narrow(1, 0, length - 1)?, documents.f_narrow(1, 1, length - 1)?);
            let starts = that.f_ne_tensor(&this)?.f_to_device(labels.device())?;
            next = next.f_masked_fill(&starts, loss.ignore_index)?;
        }
        // Places behind which there is nothing are masked rather than cut off: no copy of the hidden states.
        Ok(Tensor::f_cat(&[&next, &none], 1)?)
    }

    fn through_head(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        loss: &LinearCrossEntropy,
    ) -> Result<Tensor> {
        loss.logit_scale(self.config.logit_scale).logit_cap(self.config.logit_cap).compute(
            hidden,
            &self.head,
            self.head_bias.as_ref(),
            targets,
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::nn::VarStore;
    use tch::Device;

    use super::*;
    use crate::models::DecoderConfig;
    use crate::{LnTuningConfig, LnTuningModel};

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
        let lowest = LnTuningConfig::default().target_modules(["layers.2.input_layernorm"]);
        let _tuned = LnTuningModel::new(&vs, lowest).unwrap();
        let ids = Tensor::from_slice2(&[[1_i64, 2, 3, 4]]);
        let mut graphs = Vec::new();
        let hidden = model.forward(&Inputs::new(&ids), None, false, 0, |layer, hidden, pass| {
            let hidden = layer.forward(hidden, pass, &model.config, None)?;
            graphs.push(hidden.requires_grad());
            Ok(hidden)
        });
        assert_eq!(graphs, [false, false, true, true]);
        // The loss has a graph to the norm, and none where nothing trains above or in the head.
        let loss = LinearCrossEntropy::default();
        assert!(model.loss(&ids, &ids, &loss).unwrap().requires_grad());
        assert!(hidden.unwrap().requires_grad());
        assert!(vs.variables().iter().all(|(name, variable)| {
            variable.requires_grad() == (name == "model.layers.2.input_layernorm.weight")
        }));
    }
}
