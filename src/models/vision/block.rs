//! The block of vision transformers and of CLIP: LayerNorms stand before attention and MLP.

use tch::nn::Init;

use crate::error::Result;
use crate::models::config::{check_divides, check_sizes};
use crate::models::nn::{
    stream, Activation, Attention, Block, Branch, Flow, Guard, Inner, Linear, Mlp, Norm, NormKind,
    Qkv, Weights,
};

/// Names below the block.
pub(super) struct BlockNames {
    pub(super) norms: [&'static str; 2],
    /// Three, or one of all.
    pub(super) qkv: &'static [&'static str],
    pub(super) o: &'static str,
    /// The gate first, if there is one.
    pub(super) inner: &'static [&'static str],
    pub(super) outer: &'static str,
    /// Of what multiplies attention and MLP.
    pub(super) scales: Option<[&'static str; 2]>,
}

/// Widths and settings of a block.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BlockShape {
    pub(super) size: i64,
    pub(super) inner: i64,
    pub(super) heads: i64,
    pub(super) qkv_bias: bool,
    pub(super) norm: NormKind,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    /// On what attention and MLP add.
    pub(super) dropout: f64,
    pub(super) attention_dropout: f64,
    /// The initial value of the scales.
    pub(super) scale: f64,
    pub(super) initializer_range: f64,
}

impl BlockShape {
    pub(super) fn check(&self) -> Result<()> {
        check_sizes(&[("hidden_size", self.size), ("intermediate_size", self.inner)])?;
        check_divides(("num_attention_heads", self.heads), ("hidden_size", self.size))
    }

    pub(super) fn init(&self) -> Init {
        Init::Randn { mean: 0., stdev: self.initializer_range }
    }

    pub(super) fn norm(&self, weights: &Weights) -> Result<Norm> {
        Norm::build(weights, self.norm, self.size, self.norm_eps)
    }

    /// `layers` blocks of the variables below `weights`, by their numbers.
    pub(super) fn blocks(
        &self,
        weights: &Weights,
        names: &BlockNames,
        layers: i64,
    ) -> Result<Vec<Block>> {
        let blocks = (0..layers).map(|layer| self.block(&weights.at(layer), names));
        let mut blocks = blocks.collect::<Result<Vec<_>>>()?;
        stream(&mut blocks, None, weights)?;
        Ok(blocks)
    }

    fn block(&self, weights: &Weights, names: &BlockNames) -> Result<Block> {
        let (size, inner) = (self.size, self.inner);
        let linear = |name: &str, from: i64, to: i64, bias: bool| {
            Linear::build(&weights.at(name), (from, to), bias, self.init())
        };
        let qkv = |name: &str, to: i64| linear(name, size, to, self.qkv_bias);
        let norm = |name: &str| self.norm(&weights.at(name)).map(Some);
        let branch = |place: usize| -> Result<Branch> {
            let name = names.scales.map(|names| names[place]);
            let scale = |name: &str| weights.by_row(name, &[size], Init::Const(self.scale));
            let scales = name.map(scale).transpose()?;
            Ok(Branch { scales, ..Branch::with_dropout(self.dropout) })
        };
        Ok(Block {
            attention: Attention::plain(
                match names.qkv {
                    [q, k, v] => Qkv::Apart([qkv(q, size)?, qkv(k, size)?, qkv(v, size)?]),
                    names => Qkv::Parts(qkv(names[0], 3 * size)?),
                },
                linear(names.o, size, size, true)?,
                (size, self.heads),
                self.attention_dropout,
            ),
            across: None,
            mlp: Mlp {
                inner: match names.inner {
                    [gate, up] => Inner::Gated {
                        gate: linear(gate, size, inner, true)?,
                        up: linear(up, size, inner, true)?,
                    },
                    names => Inner::Plain(linear(names[0], size, inner, true)?),
                },
                outer: linear(names.outer, inner, size, true)?,
                activation: self.activation,
                dropout: 0.,
            },
            norms: [norm(names.norms[0])?, None, norm(names.norms[1])?, None],
            flow: Flow::Sequential,
            branches: [branch(0)?, branch(1)?],
            guard: Guard::None,
            stay: None,
        })
    }
}
