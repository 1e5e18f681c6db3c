//! A block of a decoder, by its configuration.

use tch::nn::Init;

use super::config::DecoderConfig;
use super::form::{Positions, QkvForm};
use crate::error::Result;
use crate::models::nn::{
    Attention, Block, Branch, Guard, HeadNorm, Inner, Linear, Mlp, Norm, Qkv, Rotation, Scores,
    Weights,
};

/// The block at place `layer`, of the variables below it.
pub(super) fn block(weights: &Weights, config: &DecoderConfig, layer: usize) -> Result<Block> {
    let (size, names) = (config.hidden_size, &config.names);
    let init = Init::Randn { mean: 0., stdev: config.initializer_range };
    let linear = |name: &str, from: i64, to: i64, bias: bool| {
        let weights = weights.at(name);
        if config.transposed {
            return Linear::build_transposed(&weights, (from, to), bias, init);
        }
        Linear::build(&weights, (from, to), bias, init)
    };
    let norm = |name: &str| {
        let there = (!name.is_empty()).then(|| weights.at(name));
        there.map(|weights| Norm::build(&weights, config.norm, size, config.norm_eps)).transpose()
    };
    let head_norm = |name: &str, heads: i64| {
        let shape = (heads, config.head_dim);
        HeadNorm::build(&weights.at(name), config.qk_norm, config.norm, shape, config.norm_eps)
    };
    let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let qkv = |place: usize, width: i64| linear(names.qkv[place], size, width, config.qkv_bias);
    let all = wide + 2 * narrow;
    let inner_size = config.intermediate_size;
    let inner = |place: usize, width: i64| linear(names.inner[place], size, width, config.mlp_bias);
    let [n0, n1, n2, n3] = names.norms.map(norm);
    let factor = Some(config.residual_scale).filter(|factor| *factor != 1.);
    let branch = |dropout: f64| Branch { factor, ..Branch::with_dropout(dropout) };
    Ok(Block {
        attention: Attention {
            qkv: match config.qkv {
                QkvForm::Apart => Qkv::Apart([qkv(0, wide)?, qkv(1, narrow)?, qkv(2, narrow)?]),
                QkvForm::Parts => Qkv::Parts(qkv(0, all)?),
                QkvForm::Groups => Qkv::Groups(qkv(0, all)?),
            },
            o: linear(names.o, wide, size, config.o_bias)?,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            norms: [
                head_norm(names.qk_norms[0], config.heads)?,
                head_norm(names.qk_norms[1], config.kv_heads)?,
            ],
            rotation: config.layer_ropes[layer].map(|rope| Rotation {
                rope,
                side_by_side: config.positions == (Positions::Rope { side_by_side: true }),
            }),
            scores: Scores {
                scale: config.attention_scales[layer],
                cap: config.attention_cap,
                dropout: config.attention_dropout,
            },
            clip: config.clip_qkv,
            window: config.windows[layer],
        },
        across: None,
        mlp: Mlp {
            inner: match (config.gated, names.inner.len()) {
                (false, _) => Inner::Plain(inner(0, inner_size)?),
                (true, 1) => Inner::GatedInOne(inner(0, 2 * inner_size)?),
                (true, _) => {
                    Inner::Gated { gate: inner(0, inner_size)?, up: inner(1, inner_size)? }
                }
            },
            outer: linear(names.outer, inner_size, size, config.mlp_bias)?,
            activation: config.activation,
            dropout: 0.,
        },
        norms: [n0?, n1?, n2?, n3?],
        flow: config.flow,
        branches: config.residual_dropout.map(branch),
        guard: Guard::None,
        stay: None,
    })
}
