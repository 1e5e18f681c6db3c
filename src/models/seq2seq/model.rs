//! An encoder-decoder: two stacks and a head.

use std::sync::Arc;

use tch::nn::{Init, VarStore};
use tch::{no_grad, Kind, Tensor};

use super::config::{Family, Seq2SeqConfig};
use super::stack::{Source, Stack};
use crate::autograd::recompute::Tape;
use crate::error::{refusal, refuse, Error, Result};
use crate::kernels::number::{self, WithNumber};
use crate::models::config::ModelConfig;
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{Sites, Through, Tied, Weights};
use crate::pretrained::{origin, ModelFiles};

/// An encoder-decoder language model.
///
/// Variables are named as in transformers: `encoder.block.0.layer.0.layer_norm.weight`, …. Tied embeddings are one
/// variable (`shared.weight`, `model.shared.weight`). Loaded in f16, the outer layers of T5's MLPs are in f32 all the
/// same, as in transformers.
///
/// Logits `[batch, decoder length, vocabulary]` are those of the token that follows each of the decoder's; for
/// training, [`shift_right`](Self::shift_right) makes the decoder's ids of labels.
///
/// ```no_run
/// use ln_tuning::models::{Inputs, Model, Seq2Seq};
/// # let (ids, labels) = (tch::Tensor::from_slice2(&[[1_i64, 2]]), tch::Tensor::from_slice2(&[[3_i64, 4]]));
/// let (vs, model) = Seq2Seq::from_pretrained("flan-t5-small", tch::Device::Cpu, None)?;
/// let decoder_ids = model.shift_right(&labels)?;
/// let logits = model.logits(Inputs::new(&ids).decoder_ids(&decoder_ids))?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug)]
#[doc(alias = "T5ForConditionalGeneration")]
#[doc(alias = "MT5ForConditionalGeneration")]
#[doc(alias = "BartForConditionalGeneration")]
pub struct Seq2Seq {
    pub(super) config: Seq2SeqConfig,
    encoder: Stack,
    pub(super) decoder: Stack,
    head: Tied,
    logits_bias: Option<Tensor>,
    pub(super) sites: Arc<Sites>,
}

const TAKEN: [&str; 4] =
    ["input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"];

impl Model for Seq2Seq {
    type Config = Seq2SeqConfig;

    fn build(weights: &Weights, config: &Seq2SeqConfig) -> Result<Self> {
        let (vocab, bart) = (config.vocab_size, config.family == Family::Bart);
        let init = Init::Randn { mean: 0., stdev: config.init };
        let shape = [vocab, config.hidden_size];
        let [shared, encoder, decoder, head] = embedding_names(config.family);
        let shared = weights.rows(shared, shape, init)?;
        let embedding = |name: &str| {
            if config.tied {
                return weights.tied(name, &shared);
            }
            Ok(Tied::from(weights.rows(name, shape, init)?))
        };
        Ok(Seq2Seq {
            encoder: Stack::build(weights, config, false, embedding(encoder)?)?,
            decoder: Stack::build(weights, config, true, embedding(decoder)?)?,
            head: embedding(head)?,
            logits_bias: bart
                .then(|| weights.buffer("final_logits_bias", &[1, vocab]))
                .transpose()?,
            sites: weights.sites(),
            config: config.clone(),
        })
    }

    fn config(&self) -> &Seq2SeqConfig {
        &self.config
    }

    fn kind(&self) -> Kind {
        self.encoder.kind()
    }

    /// Those of the decoder.
    fn hidden_states_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check(self.model_type(), &TAKEN)?;
        let (ids, decoder_ids) = (inputs.needed_ids()?, inputs.needed_decoder_ids()?);
        let (theirs, ours) = (ids.size()[0], decoder_ids.size()[0]);
        if ours != theirs {
            refuse!(ShapeMismatch, "the decoder has {ours} sequences, the encoder {theirs}");
        }
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.encode_with(inputs, tape)?;
        let _rows = inputs.enter();
        let tokens = inputs.tokens()?;
        let source = Source::new(&hidden, tokens.as_ref())?;
        let own = inputs.decoder_attention_mask.map(|mask| mask.f_to_kind(Kind::Bool));
        let own = own.transpose()?;
        let through = Through::Tape(tape);
        self.decoder.forward(decoder_ids, own.as_ref(), Some(&source), inputs.train, through)
    }

    fn logits_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let hidden = self.hidden_states_with(inputs, tape)?;
        let _rows = inputs.enter();
        self.head(&hidden)
    }

    fn loaded(config: &Seq2SeqConfig, vs: &VarStore, files: &ModelFiles) -> Result<()> {
        if config.family == Family::T5 {
            keep_in_f32(vs, files)?;
        }
        Ok(())
    }
}

impl Seq2Seq {
    /// The ids and their mask to the encoder's hidden states `[batch, length, hidden]`.
    ///
    /// # Errors
    /// As [`hidden_states`](Model::hidden_states).
    pub fn encode<'a>(&self, inputs: impl Into<Inputs<'a>>) -> Result<Tensor> {
        self.encode_with(inputs.into(), &mut Tape::off())
    }

    pub(super) fn encode_with<'m>(&'m self, inputs: Inputs, tape: &mut Tape<'m>) -> Result<Tensor> {
        inputs.check(self.config.model_type(), &TAKEN)?;
        let rows = inputs.named_rows(&self.sites)?;
        let inputs = inputs.with_rows(rows.as_ref());
        let _rows = inputs.enter();
        let (ids, tokens) = (inputs.needed_ids()?, inputs.tokens()?);
        let through = Through::Tape(tape);
        self.encoder.forward(ids, tokens.as_ref(), None, inputs.train, through)
    }

    /// The decoder's ids for these labels `[batch, length]`: the start token, and each label where the next
    /// is to be told. Labels of -100, which the loss leaves out, become padding.
    ///
    /// # Errors
    /// `InvalidConfig` if the configuration has no `decoder_start_token_id` or `pad_token_id`; `ShapeMismatch`.
    #[doc(alias = "prepare_decoder_input_ids_from_labels")]
    pub fn shift_right(&self, labels: &Tensor) -> Result<Tensor> {
        let (config, size) = (&self.config, labels.size());
        let start = config.decoder_start_token_id.ok_or_else(no_start)?;
        let pad = config
            .pad_token_id
            .ok_or_else(|| refusal!(InvalidConfig, "'pad_token_id' is missing, labels need it"))?;
        let [batch, length @ (1..)] = size[..] else {
            refuse!(ShapeMismatch, "the labels have shape {size:?}, expected [batch, length]");
        };
        let start = number::full([batch, 1], start, (labels.f_kind()?, labels.device()))?;
        let shifted = Tensor::f_cat(&[start, labels.f_narrow(1, 0, length - 1)?], 1)?;
        Ok(shifted.f_fill_where(&shifted.f_eq_number(-100)?, pad)?)
    }

    pub(super) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let scale = self.config.output_scale;
        let hidden = match scale {
            1. => hidden.shallow_clone(),
            scale => hidden.f_mul_number(scale)?,
        };
        let logits = self.head.logits(&hidden, None)?;
        match &self.logits_bias {
            Some(bias) => Ok(logits.f_add(&bias.f_to_kind(logits.f_kind()?)?)?),
            None => Ok(logits),
        }
    }
}

pub(super) fn no_start() -> Error {
    refusal!(InvalidConfig, "'decoder_start_token_id' is missing, the decoder needs it")
}

/// The shared matrix, and those that may be tied to it: the encoder's, the decoder's, the head.
fn embedding_names(family: Family) -> [&'static str; 4] {
    match family {
        Family::T5 => [
            "shared.weight",
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "lm_head.weight",
        ],
        Family::Bart => [
            "model.shared.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        ],
    }
}

/// The end of the names of T5's outer layers.
const WIDE: &str = ".DenseReluDense.wo.weight";

/// transformers reads the outer layers of T5's MLPs in f32 where the model is in f16, which they would leave.
fn keep_in_f32(vs: &VarStore, files: &ModelFiles) -> Result<()> {
    let kept = origin::kept(vs);
    let low = kept.iter().find(|kept| kept.name.ends_with(WIDE) && kept.kind == Kind::Half);
    if let Some(kept) = low {
        refuse!(
            Unsupported,
            "'{}' is kept as {}, and a T5 in f16 needs it in f32: choose the kind f32 or bf16, or keep the base plain",
            kept.name,
            kept.in_words()
        );
    }
    for (name, variable) in vs.variables() {
        if name.ends_with(WIDE) && variable.f_kind()? == Kind::Half {
            let read = files.tensor(&name)?.f_to_kind(Kind::Float)?.f_to_device(vs.device())?;
            let mut variable = variable;
            no_grad(|| variable.f_set_data(&read))?;
        }
    }
    Ok(())
}
