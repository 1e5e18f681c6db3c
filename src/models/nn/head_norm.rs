//! Norms on the heads of queries and of keys.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::norm::{Norm, NormKind};
use super::rows::Rows;
use super::weights::Weights;
use crate::error::Result;

/// The form of the norm on queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum QkNorm {
    None,
    /// Each head by itself, with weights that all heads share.
    Heads,
    /// Each head by itself with weights of its own: one tensor for all heads, or one each.
    OwnHeads {
        listed: bool,
    },
    /// All heads together.
    Whole,
}

#[derive(Debug)]
pub(in crate::models) enum HeadNorm {
    None,
    /// `[head_dim]`, or all heads together.
    Shared {
        norm: Norm,
        whole: bool,
    },
    /// One tensor `[heads, head_dim]`, or `[head_dim]` per head.
    Own {
        weights: Vec<Tensor>,
        eps: f64,
    },
}

impl HeadNorm {
    pub(in crate::models) fn build(
        weights: &Weights,
        form: QkNorm,
        kind: NormKind,
        (heads, head_dim): (i64, i64),
        eps: f64,
    ) -> Result<Self> {
        let init = Init::Const(1.);
        let (size, whole) = match form {
            QkNorm::None => return Ok(HeadNorm::None),
            QkNorm::OwnHeads { listed: true } => {
                let own = (0..heads)
                    .map(|head| weights.by_row(&format!("norms.{head}.weight"), &[head_dim], init));
                return Ok(HeadNorm::Own { weights: own.collect::<Result<_>>()?, eps });
            }
            QkNorm::OwnHeads { listed: false } => {
                let own = weights.by_row("weight", &[heads, head_dim], init)?;
                return Ok(HeadNorm::Own { weights: vec![own], eps });
            }
            QkNorm::Heads => (head_dim, false),
            QkNorm::Whole => (heads * head_dim, true),
        };
        Ok(HeadNorm::Shared { norm: Norm::build(weights, kind, size, eps)?, whole })
    }

    /// `[batch, length, heads, head_dim]` to the same.
    pub(in crate::models) fn forward(&self, x: Tensor) -> Result<Tensor> {
        match self {
            HeadNorm::None => Ok(x),
            HeadNorm::Shared { norm, whole: false } => norm.forward(&x),
            HeadNorm::Shared { norm, whole: true } => {
                Ok(norm.forward(&x.f_flatten(2, 3)?)?.f_reshape(x.size())?)
            }
            HeadNorm::Own { weights, eps } => {
                let rows = Rows::with_own(weights.iter().map(Some));
                let own = weights.iter().map(|weight| match &rows {
                    Some(rows) if weight.dim() == 2 => rows.beside(weight, &x),
                    // Those of one head, as if there were no other.
                    Some(rows) => rows.beside(weight, &x.f_select(2, 0)?),
                    None => Ok(weight.shallow_clone()),
                });
                let mut own = own.collect::<Result<Vec<_>>>()?;
                let weight = match weights.as_slice() {
                    [one] if one.dim() == 2 => own.swap_remove(0),
                    _ => Tensor::f_stack(&Tensor::f_broadcast_tensors(&own)?, -2)?,
                };
                let size = [*weight.size().last().unwrap_or(&0)];
                let x32 = x.f_to_kind(Kind::Float)?;
                let normed =
                    x32.f_layer_norm(size, None::<&Tensor>, None::<&Tensor>, *eps, true)?;
                let normed = normed.f_mul(&weight.f_to_kind(Kind::Float)?)?;
                Ok(normed.f_to_kind(x.f_kind()?)?)
            }
        }
    }
}
