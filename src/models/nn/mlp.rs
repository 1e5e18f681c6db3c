//! The MLP of a block: wider inside, perhaps with a gate.

use tch::Tensor;

use super::activation::Activation;
use super::linear::Linear;
use crate::error::Result;

#[derive(Debug)]
pub(in crate::models) struct Mlp {
    pub(in crate::models) inner: Inner,
    pub(in crate::models) outer: Linear,
    pub(in crate::models) activation: Activation,
    /// In front of the outer layer.
    pub(in crate::models) dropout: f64,
}

#[derive(Debug)]
pub(in crate::models) enum Inner {
    Plain(Linear),
    /// One layer, and the gate that it is multiplied with behind the activation.
    Gated {
        gate: Linear,
        up: Linear,
    },
    /// The same, as one matrix: gate, up.
    GatedInOne(Linear),
}

impl Mlp {
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let inner = match &self.inner {
            Inner::Plain(one) | Inner::GatedInOne(one) => [Some(one), None],
            Inner::Gated { gate, up } => [Some(gate), Some(up)],
        };
        inner.into_iter().flatten().chain([&self.outer])
    }

    pub(in crate::models) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let act = self.activation;
        let inner = match &self.inner {
            Inner::Plain(layer) => act.apply(&layer.forward(x)?)?,
            Inner::Gated { gate, up } => {
                let [gate, up] = Linear::forward_all([gate, up], x)?;
                act.gated(&gate, &up)?
            }
            Inner::GatedInOne(both) => act.gated_in_one(&both.forward(x)?)?,
        };
        let inner = dropped(inner, self.dropout, train)?;
        // T5's outer layer stays in f32 where the model is in f16.
        self.outer.forward(&inner.f_to_kind(self.outer.weight.kind()?)?)
    }
}

pub(in crate::models) fn dropped(x: Tensor, dropout: f64, train: bool) -> Result<Tensor> {
    if train && dropout > 0. {
        return Ok(x.f_dropout(dropout, true)?);
    }
    Ok(x)
}
