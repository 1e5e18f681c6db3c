//! Known gradients as part of a graph, since tch has no custom autograd functions.

use tch::{no_grad, Tensor};

use crate::error::Result;

/// The sum of the inner products of each tensor with its gradient. Its backward pass yields the given gradients; its
/// value has no meaning. The products are in the gradients' kind, so that a factor of the backward pass is not rounded
/// to the tensors' kind.
pub(crate) fn inner_product(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (tensor, gradient) in pairs {
        let (tensor, gradient) =
            (tensor.f_to_kind(gradient.f_kind()?)?.f_reshape([-1])?, gradient.f_reshape([-1])?);
        // BLAS has 32-bit sizes.
        let product = match i32::try_from(tensor.numel()) {
            Ok(_) => tensor.f_dot(&gradient)?,
            Err(_) => tensor.f_mul(&gradient)?.f_sum(gradient.f_kind()?)?,
        };
        sum = Some(match sum {
            None => product,
            Some(sum) => sum.f_add(&product)?,
        });
    }
    Ok(sum.unwrap_or_default())
}

/// A scalar of this value, with the gradient of `graph`.
pub(crate) fn with_value(graph: Tensor, value: &Tensor) -> Result<Tensor> {
    let mut graph = graph;
    // In place and outside the graph, since adding a difference would give NaN if `graph` is infinite. The backward
    // pass does not use the value of the root.
    no_grad(|| graph.f_copy_(value))?;
    Ok(graph)
}
