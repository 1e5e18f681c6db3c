//! Gradients by hand where autograd would keep too much: the loss through a head, and blocks that are run twice.

pub(crate) mod known_gradient;
pub mod loss;
pub mod recompute;
