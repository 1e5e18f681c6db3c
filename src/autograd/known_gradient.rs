//! Gradients that are known, as part of a graph: tch has no custom autograd functions.

use tch::{no_grad, Device, Kind, Tensor};

use crate::error::Result;

/// The sum of the inner products of each tensor with its gradient: its gradient is what was given, and its own value
/// means nothing. The products are in the gradients' kind, so that a factor that comes from above is not rounded to
/// the tensors'.
pub(crate) fn inner_product(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (tensor, gradient) in pairs {
        let (tensor, gradient) =
            (tensor.f_to_kind(gradient.f_kind()?)?.f_reshape([-1])?, gradient.f_reshape([-1])?);
        // BLAS counts with 32 bits.
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
    // In place and outside the graph, rather than by adding a difference, which is not a number where `graph` is
    // infinite. Nothing in the graph looks at the value of its end.
    no_grad(|| graph.f_copy_(value))?;
    Ok(graph)
}

/// Whether operations are recorded. tch does not say.
pub(crate) fn grad_is_enabled() -> Result<bool> {
    let leaf = Tensor::f_empty([0], (Kind::Float, Device::Cpu))?.f_set_requires_grad(true)?;
    is_recorded(&leaf)
}

/// Whether what is computed from `tensor` now has a graph.
pub(crate) fn is_recorded(tensor: &Tensor) -> Result<bool> {
    // A view made under `no_grad` requires no gradient.
    Ok(tensor.requires_grad() && tensor.f_alias()?.requires_grad())
}
