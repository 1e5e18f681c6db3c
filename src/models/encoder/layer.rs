//! A block of an encoder, by its configuration: LayerNorm stands behind attention and MLP.

use tch::nn::Init;

use super::config::EncoderConfig;
use crate::error::Result;
use crate::models::nn::{
    Attention, Block, Branch, Flow, Guard, Inner, Linear, Mlp, Norm, NormKind, Qkv, Weights,
};

/// The block of the variables below `weights`.
pub(super) fn block(weights: &Weights, config: &EncoderConfig) -> Result<Block> {
    let init = Init::Randn { mean: 0., stdev: config.initializer_range };
    let (size, inner) = (config.hidden_size, config.intermediate_size);
    let names = config.family.names;
    let linear =
        |name: &str, from: i64, to: i64| Linear::build(&weights.at(name), (from, to), true, init);
    let norm = |name: &str| Norm::build(&weights.at(name), NormKind::Layer, size, config.norm_eps);
    let attention_dropout = match config.family.attention_output_dropout {
        true => config.dropout,
        false => 0.,
    };
    Ok(Block {
        attention: Attention::plain(
            Qkv::Apart([
                linear(names.query, size, size)?,
                linear(names.key, size, size)?,
                linear(names.value, size, size)?,
            ]),
            linear(names.attention_output, size, size)?,
            (size, config.heads),
            config.attention_dropout,
        ),
        across: None,
        mlp: Mlp {
            inner: Inner::Plain(linear(names.inner, size, inner)?),
            outer: linear(names.outer, inner, size)?,
            activation: config.activation,
            dropout: 0.,
        },
        norms: [None, Some(norm(names.attention_norm)?), None, Some(norm(names.output_norm)?)],
        flow: Flow::NormedSums,
        branches: [attention_dropout, config.dropout].map(Branch::with_dropout),
        guard: Guard::None,
        stay: None,
    })
}
