//! The heads of encoders: masked LM and classifiers.

use tch::nn::Init;
use tch::Tensor;

use super::config::{EncoderConfig, EncoderHead};
use crate::error::{Error, ErrorKind, Result};
use crate::models::activation::Activation;
use crate::models::parts::{LayerNorm, Linear};
use crate::models::weights::Weights;

#[derive(Debug)]
pub(super) enum Head {
    None,
    MaskedLm {
        dense: Linear,
        activation: Activation,
        norm: LayerNorm,
        decoder: Linear,
    },
    Sequence {
        dense: Linear,
        activation: Activation,
        output: Linear,
        dropout: f64,
        dropout_first: bool,
    },
    Token {
        output: Linear,
        dropout: f64,
    },
}

impl Head {
    /// `words` is the word embedding, which a tied decoder is.
    pub(super) fn build(weights: &Weights, config: &EncoderConfig, words: &Tensor) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let size = config.hidden_size;
        let linear = |name: &str, to: i64| Linear::build(weights, name, (size, to), true, init);
        let classes = config.labels.len() as i64;
        Ok(match config.head {
            EncoderHead::None => Head::None,
            EncoderHead::MaskedLm => {
                let names = config.family.masked_lm;
                let bias = weights.tensor(names.bias, &[config.vocab_size], Init::Const(0.))?;
                let decoder = match config.tied {
                    true => Linear::of(words.shallow_clone(), Some(bias)),
                    // transformers keeps the other bias and does not use it.
                    false => linear(names.decoder, config.vocab_size)?,
                };
                Head::MaskedLm {
                    dense: linear(names.dense, size)?,
                    activation: names.activation.unwrap_or(config.activation),
                    norm: LayerNorm::build(weights, names.norm, size, config.norm_eps)?,
                    decoder,
                }
            }
            EncoderHead::SequenceClassification => {
                let classifier = config.family.classifier;
                Head::Sequence {
                    dense: linear(classifier.dense, size)?,
                    activation: classifier.activation,
                    output: linear(classifier.output, classes)?,
                    dropout: config.sequence_dropout,
                    dropout_first: classifier.dropout_first,
                }
            }
            EncoderHead::TokenClassification => Head::Token {
                output: linear("classifier", classes)?,
                dropout: config.token_dropout,
            },
        })
    }

    /// Hidden states `[batch, length, size]` to logits.
    pub(super) fn forward(&self, hidden: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Head::None => Err(Error::new(
                ErrorKind::InvalidState,
                "the model has no head, so there are no logits: ask for hidden_states, or load it with a head",
            )),
            Head::MaskedLm { dense, activation, norm, decoder } => {
                let hidden = activation.apply(&dense.forward(hidden)?)?;
                decoder.forward(&norm.forward(&hidden)?)
            }
            Head::Sequence { dense, activation, output, dropout, dropout_first } => {
                let first = hidden.f_select(1, 0)?;
                let first = first.f_dropout(*dropout, train && *dropout_first)?;
                let pooled = activation.apply(&dense.forward(&first)?)?;
                output.forward(&pooled.f_dropout(*dropout, train)?)
            }
            Head::Token { output, dropout } => {
                output.forward(&hidden.f_dropout(*dropout, train)?)
            }
        }
    }
}
