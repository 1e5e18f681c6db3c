//! A block of an encoder-decoder, by its configuration.

use tch::nn::Init;

use super::config::{Family, Seq2SeqConfig, StackShape};
use crate::error::Result;
use crate::models::nn::{
    Across, Attention, Block, Branch, Flow, Guard, HeadNorm, Inner, Linear, Mlp, Norm, NormKind,
    Qkv, Scores, Weights,
};

/// Builds the parts of one stack.
pub(super) struct Builder<'a> {
    pub(super) config: &'a Seq2SeqConfig,
    pub(super) shape: StackShape,
}

/// The names of a block's parts, below it: attention and its norm, attention to the source and its norm, the MLP's
/// norm, and what stands before the MLP's own names.
struct Names {
    own: [&'static str; 2],
    source: [&'static str; 2],
    qkvo: [&'static str; 4],
    mlp: &'static str,
    mlp_norm: &'static str,
    inner: &'static str,
    /// Of a gated MLP: the gate, the other.
    gated: [&'static str; 2],
    outer: &'static str,
}

const BART: Names = Names {
    own: ["self_attn", "self_attn_layer_norm"],
    source: ["encoder_attn", "encoder_attn_layer_norm"],
    qkvo: ["q_proj", "k_proj", "v_proj", "out_proj"],
    mlp: "",
    mlp_norm: "final_layer_norm",
    inner: "fc1",
    gated: ["fc1"; 2],
    outer: "fc2",
};

const T5_ENCODER: Names = Names {
    own: ["layer.0.SelfAttention", "layer.0.layer_norm"],
    source: ["layer.1.EncDecAttention", "layer.1.layer_norm"],
    qkvo: ["q", "k", "v", "o"],
    mlp: "layer.1.DenseReluDense",
    mlp_norm: "layer.1.layer_norm",
    inner: "wi",
    gated: ["wi_0", "wi_1"],
    outer: "wo",
};

const T5_DECODER: Names =
    Names { mlp: "layer.2.DenseReluDense", mlp_norm: "layer.2.layer_norm", ..T5_ENCODER };

impl Builder<'_> {
    pub(super) fn norm(&self, weights: &Weights) -> Result<Norm> {
        let (size, eps) = (self.config.hidden_size, self.config.norm_eps);
        match self.config.family {
            Family::Bart => Norm::build(weights, NormKind::Layer, size, eps),
            Family::T5 => {
                let init = Init::Const(self.config.init);
                Norm::build_with(weights, NormKind::Rms, size, eps, init)
            }
        }
    }

    /// The block of the variables below `weights`; a `decoder`'s looks at the source too.
    pub(super) fn block(&self, weights: &Weights, decoder: bool) -> Result<Block> {
        let config = self.config;
        let bart = config.family == Family::Bart;
        let names = match (config.family, decoder) {
            (Family::Bart, _) => BART,
            (Family::T5, false) => T5_ENCODER,
            (Family::T5, true) => T5_DECODER,
        };
        // The norm stands before or behind.
        let pair = |name: &str| -> Result<[Option<Norm>; 2]> {
            let norm = Some(self.norm(&weights.at(name))?);
            Ok(if bart { [None, norm] } else { [norm, None] })
        };
        let [before, behind] = pair(names.own[1])?;
        let [before_mlp, behind_mlp] = pair(names.mlp_norm)?;
        let across = || -> Result<Across> {
            Ok(Across {
                attention: self.attention(&weights.at(names.source[0]), names.qkvo)?,
                norms: pair(names.source[1])?,
            })
        };
        Ok(Block {
            attention: self.attention(&weights.at(names.own[0]), names.qkvo)?,
            across: decoder.then(across).transpose()?,
            mlp: self.mlp(&weights.at(names.mlp), &names)?,
            norms: [before, behind, before_mlp, behind_mlp],
            flow: if bart { Flow::NormedSums } else { Flow::Sequential },
            branches: [config.dropout; 2].map(Branch::with_dropout),
            stay: None,
            guard: match (config.family, decoder) {
                (Family::T5, _) => Guard::EachSum,
                (Family::Bart, false) => Guard::Output,
                (Family::Bart, true) => Guard::None,
            },
        })
    }

    fn linear(&self, weights: &Weights, sizes: (i64, i64), stdev: f64) -> Result<Linear> {
        let init = Init::Randn { mean: 0., stdev };
        Linear::build(weights, sizes, self.config.family == Family::Bart, init)
    }

    fn attention(&self, weights: &Weights, names: [&str; 4]) -> Result<Attention> {
        let (config, shape) = (self.config, self.shape);
        let (size, wide) = (config.hidden_size, shape.heads * shape.head_dim);
        let (init, head_dim) = (config.init, shape.head_dim as f64);
        // T5 does not scale its scores, but its initial queries.
        let narrow = init * (size as f64).powf(-0.5);
        let (stdevs, scale) = match config.family {
            Family::T5 => {
                let queries = narrow * head_dim.powf(-0.5);
                ([queries, narrow, narrow, init * (wide as f64).powf(-0.5)], 1.)
            }
            Family::Bart => ([init; 4], head_dim.powf(-0.5)),
        };
        let linear = |index: usize, sizes: (i64, i64)| {
            self.linear(&weights.at(names[index]), sizes, stdevs[index])
        };
        Ok(Attention {
            qkv: Qkv::Apart([
                linear(0, (size, wide))?,
                linear(1, (size, wide))?,
                linear(2, (size, wide))?,
            ]),
            o: linear(3, (wide, size))?,
            heads: shape.heads,
            kv_heads: shape.heads,
            head_dim: shape.head_dim,
            norms: [HeadNorm::None, HeadNorm::None],
            rotation: None,
            scores: Scores { scale, cap: None, dropout: config.attention_dropout },
            clip: None,
            window: None,
        })
    }

    fn mlp(&self, weights: &Weights, names: &Names) -> Result<Mlp> {
        let config = self.config;
        let (size, inner) = (config.hidden_size, self.shape.inner);
        let stdevs = match config.family {
            Family::T5 => [size, inner].map(|from| config.init * (from as f64).powf(-0.5)),
            Family::Bart => [config.init; 2],
        };
        let wide = |name: &str| self.linear(&weights.at(name), (size, inner), stdevs[0]);
        Ok(Mlp {
            inner: if config.gated {
                Inner::Gated { gate: wide(names.gated[0])?, up: wide(names.gated[1])? }
            } else {
                Inner::Plain(wide(names.inner)?)
            },
            outer: self.linear(&weights.at(names.outer), (inner, size), stdevs[1])?,
            activation: config.activation,
            dropout: config.activation_dropout,
        })
    }
}
