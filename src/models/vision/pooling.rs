//! The head of SigLIP's tower for images: a learned query looks at the patches.

use tch::nn::Init;
use tch::Tensor;

use super::block::BlockShape;
use crate::error::Result;
use crate::models::nn::{Attention, Context, Inner, Linear, Mask, Mlp, Norm, Qkv, Rows, Weights};

#[derive(Debug)]
pub(super) struct Pooling {
    /// `[1, 1, size]`
    probe: Tensor,
    attention: Attention,
    norm: Norm,
    mlp: Mlp,
}

impl Pooling {
    pub(super) fn build(weights: &Weights, shape: &BlockShape) -> Result<Self> {
        let (size, init) = (shape.size, shape.init());
        let linear = |name: &str, from: i64, to: i64| {
            Linear::build(&weights.at(name), (from, to), true, init)
        };
        let attention = weights.at("attention");
        // The names of torch's `MultiheadAttention`.
        let all = Linear::of(
            attention.by_row("in_proj_weight", &[3 * size, size], init)?,
            Some(attention.by_row("in_proj_bias", &[3 * size], Init::Const(0.))?),
        );
        Ok(Pooling {
            probe: weights.by_row("probe", &[1, 1, size], init)?,
            attention: Attention::plain(
                Qkv::Parts(all),
                linear("attention.out_proj", size, size)?,
                (size, shape.heads),
                0.,
            ),
            norm: shape.norm(&weights.at("layernorm"))?,
            mlp: Mlp {
                inner: Inner::Plain(linear("mlp.fc1", size, shape.inner)?),
                outer: linear("mlp.fc2", shape.inner, size)?,
                activation: shape.activation,
                dropout: 0.,
            },
        })
    }

    /// Hidden states `[batch, patches, size]` to features `[batch, size]`.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let context = Context::new(false, hidden.f_kind()?, Mask::Everything)?;
        let probe = match Rows::with_own([Some(&self.probe)]) {
            Some(rows) => rows.of_each(hidden, |adapter| {
                Ok(rows.of(&self.probe, adapter)?.f_squeeze_dim(0)?)
            })?,
            None => self.probe.f_expand([hidden.size()[0], -1, -1], false)?,
        };
        let pooled = self.attention.across(&probe, hidden, &context, None)?;
        let out = self.mlp.forward(&self.norm.forward(&pooled)?, false)?;
        Ok(pooled.f_add(&out)?.f_select(1, 0)?)
    }
}
