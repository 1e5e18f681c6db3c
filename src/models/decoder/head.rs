//! The heads of decoders: the next token, or labels for the whole sequence.

use tch::nn::Init;
use tch::Tensor;

use super::config::DecoderConfig;
use crate::error::{refusal, refuse, Error, Result};
use crate::kernels::number::{self, WithNumber};
use crate::models::config::ModelConfig;
use crate::models::inputs::Inputs;
use crate::models::nn::{capped, Linear, Matrix, Tied, Weight, Weights};
use crate::pretrained;

#[derive(Debug)]
pub(super) enum Head {
    None,
    /// `weight` `[vocabulary, size]`, which may be the embedding, and a bias perhaps.
    LanguageModel {
        weight: Tied,
        bias: Option<Tensor>,
    },
    Sequence(Linear),
}

impl Head {
    pub(super) fn build(weights: &Weights, config: &DecoderConfig, embed: &Weight) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let (vocab, size) = (config.vocab_size, config.embed_size);
        match config.head() {
            pretrained::Head::LanguageModel => Ok(Head::LanguageModel {
                weight: if config.tied {
                    weights.tied("lm_head.weight", embed)?
                } else {
                    weights.rows("lm_head.weight", [vocab, size], init)?.into()
                },
                bias: config
                    .head_bias
                    .then(|| weights.by_row("lm_head.bias", &[vocab], Init::Const(0.)))
                    .transpose()?,
            }),
            pretrained::Head::SequenceClassification => {
                let labels = config.labels().len() as i64;
                Ok(Head::Sequence(Linear::build(
                    &weights.at("score"),
                    (size, labels),
                    false,
                    init,
                )?))
            }
            _ => Ok(Head::None),
        }
    }

    /// The matrix of a language model's head.
    pub(super) fn matrix(&self) -> Option<Matrix> {
        match self {
            Head::LanguageModel { weight, .. } => {
                Some(("lm_head.weight".to_owned(), weight.get().variable().shallow_clone()))
            }
            _ => None,
        }
    }

    /// The weight and the bias of a language model's head.
    pub(super) fn language_model(&self) -> Result<(&Tied, Option<&Tensor>)> {
        match self {
            Head::LanguageModel { weight, bias } => Ok((weight, bias.as_ref())),
            _ => Err(refusal!(
                InvalidState,
                "the model has no language model's head: load it with Head::LanguageModel, or ask for hidden_states"
            )),
        }
    }

    /// Hidden states `[batch, length, size]` to logits.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        config: &DecoderConfig,
        inputs: &Inputs,
    ) -> Result<Tensor> {
        if let Head::Sequence(score) = self {
            return score.forward(&last_tokens(hidden, config, inputs)?);
        }
        let (weight, bias) = self.language_model()?;
        let logits = weight.logits(hidden, bias)?;
        let logits = match config.logit_scale {
            1. => logits,
            scale => logits.f_mul_number(scale)?,
        };
        capped(logits, config.logit_cap)
    }
}

/// The hidden state of each row's last token, `[batch, size]`: the last that is neither padding by the mask nor
/// `pad_token_id`, which transformers passes over even where it ends a text.
fn last_tokens(hidden: &Tensor, config: &DecoderConfig, inputs: &Inputs) -> Result<Tensor> {
    if inputs.documents.is_some() {
        refuse!(InvalidArgument, "a classifier reads whole rows, not packed documents");
    }
    let (batch, length, size) = hidden.size3()?;
    let by_id =
        config.pad_token_id.map(|pad| Ok::<_, Error>(inputs.needed_ids()?.f_ne_number(pad)?));
    let tokens = match (inputs.tokens()?, by_id.transpose()?) {
        (Some(by_mask), Some(by_id)) => by_mask.f_logical_and(&by_id)?,
        (Some(tokens), None) | (None, Some(tokens)) => tokens,
        (None, None) => return Ok(hidden.f_select(1, length - 1)?),
    };
    let places = number::arange(0, length, hidden.device())?;
    let last = places.f_mul(&tokens)?.f_argmax(-1, true)?;
    let last = last.f_unsqueeze(-1)?.f_expand([batch, 1, size], false)?;
    Ok(hidden.f_gather(1, &last, false)?.f_squeeze_dim(1)?)
}
