//! The heads of encoders: masked LM and classifiers.

use tch::nn::Init;
use tch::Tensor;

use super::config::EncoderConfig;
use crate::error::{refusal, Result};
use crate::kernels::product::linear as product;
use crate::models::config::ModelConfig;
use crate::models::nn::{Activation, Linear, Norm, NormKind, Tied, Weight, Weights};
use crate::pretrained;

#[derive(Debug)]
pub(super) enum Head {
    None,
    MaskedLm {
        dense: Linear,
        activation: Activation,
        norm: Norm,
        decoder: [Tied; 2],
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
    /// `words` is the word embedding, which the decoder may be tied to.
    pub(super) fn build(weights: &Weights, config: &EncoderConfig, words: &Weight) -> Result<Self> {
        let init = Init::Randn { mean: 0., stdev: config.initializer_range };
        let size = config.hidden_size;
        let linear = |name: &str, to: i64| Linear::build(&weights.at(name), (size, to), true, init);
        let classes = config.labels().len() as i64;
        Ok(match config.head() {
            pretrained::Head::MaskedLm => {
                let names = config.family.masked_lm;
                let bias = weights.by_row(names.bias, &[config.vocab_size], Init::Const(0.))?;
                let decoder = if config.tied {
                    let decoder = weights.at(names.decoder);
                    let bias = Weight::from(bias);
                    let bias = match names.bias == format!("{}.bias", names.decoder) {
                        true => Tied::from(bias),
                        false => decoder.tied("bias", &bias)?,
                    };
                    [decoder.tied("weight", words)?, bias]
                } else {
                    // transformers keeps the other bias and does not use it.
                    let decoder = linear(names.decoder, config.vocab_size)?;
                    let bias = Weight::from(decoder.bias.unwrap_or(bias));
                    [decoder.weight, bias].map(Tied::from)
                };
                Head::MaskedLm {
                    dense: linear(names.dense, size)?,
                    activation: names.activation.unwrap_or(config.activation),
                    norm: Norm::build(
                        &weights.at(names.norm),
                        NormKind::Layer,
                        size,
                        config.norm_eps,
                    )?,
                    decoder,
                }
            }
            pretrained::Head::SequenceClassification => {
                let classifier = config.family.classifier;
                Head::Sequence {
                    dense: linear(classifier.dense, size)?,
                    activation: classifier.activation,
                    output: linear(classifier.output, classes)?,
                    dropout: config.sequence_dropout,
                    dropout_first: classifier.dropout_first,
                }
            }
            pretrained::Head::TokenClassification => Head::Token {
                output: linear("classifier", classes)?,
                dropout: config.token_dropout,
            },
            _ => Head::None,
        })
    }

    /// Hidden states `[batch, length, size]` to logits.
    pub(super) fn forward(&self, hidden: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Head::None => Err(refusal!(
                InvalidState,
                "the model has no head, so there are no logits: ask for hidden_states, or load it with a head"
            )),
            Head::MaskedLm { dense, activation, norm, decoder } => {
                let hidden = activation.apply(&dense.forward(hidden)?)?;
                let hidden = norm.forward(&hidden)?;
                let device = hidden.device();
                let logits = |x: &Tensor, [weight, bias]: [&Weight; 2]| {
                    product(x, &weight.values(device)?, Some(&bias.values(device)?))
                };
                let [weight, bias] = decoder;
                match weight.rows(None).or_else(|| bias.rows(None)) {
                    Some(rows) => {
                        let (weights, biases) =
                            (weight.sharing(&rows, None)?, bias.sharing(&rows, None)?);
                        let sharing = rows.sharing_by(|adapter| (weights[adapter], biases[adapter]));
                        rows.grouped_by(&hidden, &sharing, |x, adapter| {
                            let own = |tied: &Tied| tied.of_adapter(&rows, adapter);
                            logits(x, [&own(weight)?, &own(bias)?])
                        })
                    }
                    None => logits(&hidden, [weight.get(), bias.get()]),
                }
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
