//! Norms on the heads of queries and of keys.

use tch::nn::Init;
use tch::{Kind, Tensor};

use super::norm::{Norm, NormKind};
use super::rows::Rows;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::fused;
use crate::kernels::fused_forms::NormForm;

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
                if let Some(normed) = one_function(&x, &weight, *eps)? {
                    return Ok(normed);
                }
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

/// LayerNorm of `x` `[batch, length, heads, head_dim]` with weights `[heads, head_dim]`, or `[parts…, 1…, heads,
/// head_dim]`, in one function, if there is one.
fn one_function(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let norm =
        |x: &Tensor, weight: &Tensor| fused::norm(x, Some(weight), None, NormForm::Layer, eps);
    if !x.device().is_cuda() || !fused::is_for(x)? {
        return norm(x, weight);
    }
    // The kernels know weights of parts alone: a head's rows stand together in a copy.
    by_head(x, weight, norm)
}

/// `norm` of the rows of each head together, where each head is a part of its own.
fn by_head(
    x: &Tensor,
    weight: &Tensor,
    norm: impl FnOnce(&Tensor, &Tensor) -> Result<Option<Tensor>>,
) -> Result<Option<Tensor>> {
    let together = |x: &Tensor| x.f_permute([2, 0, 1, 3]);
    let (_, _, heads, head_dim) = x.size4()?;
    let weight = match weight.dim() {
        2 => weight.f_view([1, 1, heads, head_dim])?,
        _ => weight.shallow_clone(),
    };
    let normed = norm(&together(x)?, &together(&weight)?)?;
    Ok(normed.map(|normed| normed.f_permute([1, 2, 0, 3])).transpose()?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::device::without_fused_functions;

    /// Values and gradients of one function are those of operators, whether heads have their weights in one tensor or
    /// one each, and whether their rows stand together, as on CUDA, or in turn.
    #[test]
    fn heads_with_weights_of_their_own_are_normed_as_by_operators() {
        tch::manual_seed(3);
        let (batch, length, heads, dim) = (3, 70, 5, 13);
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
            let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let leaf = |shape: &[i64]| random(shape).to_kind(kind).set_requires_grad(true);
            // Heads of one projection, as layers make them.
            let both = leaf(&[batch, length, 2 * heads, dim]);
            let x = both.narrow(2, 1, heads);
            let upstream = random(&[batch, length, heads, dim]).to_kind(kind);
            for weights in
                [vec![leaf(&[heads, dim])], (0..heads).map(|_| leaf(&[dim])).collect::<Vec<_>>()]
            {
                let mut inputs = vec![&both];
                inputs.extend(&weights);
                let own = weights.iter().map(Tensor::shallow_clone).collect();
                let norm = HeadNorm::Own { weights: own, eps: 1e-2 };
                let gradients = |y: Tensor| {
                    let root = (&y * &upstream).sum(Kind::Float);
                    let mut all = Tensor::run_backward(&[root], &inputs, false, false);
                    all.push(y.detach());
                    all
                };
                let all = || gradients(norm.forward(x.shallow_clone()).unwrap());
                let expected = without_fused_functions(all);
                let weight = match weights.as_slice() {
                    [one] => one.shallow_clone(),
                    all => Tensor::stack(all, 0),
                };
                let layer = |x: &Tensor, weight: &Tensor| {
                    fused::norm(x, Some(weight), None, NormForm::Layer, 1e-2)
                };
                let copied = by_head(&x, &weight, layer).unwrap();
                assert_eq!(copied.is_some(), fused::is_for(&x).unwrap());
                let all = all().into_iter().chain(copied.into_iter().flat_map(gradients));
                for (found, expected) in all.zip(expected.iter().cycle()) {
                    assert_eq!((found.size(), found.kind()), (expected.size(), kind));
                    let [found, expected] = [&found, expected].map(|x| x.to_kind(Kind::Double));
                    let off = (found - &expected).abs().max().double_value(&[]);
                    let scale = expected.abs().max().double_value(&[]);
                    assert!(off <= tolerance * scale, "{off} off {scale} in {kind:?}");
                }
            }
        }
    }
}
