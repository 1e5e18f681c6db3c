//! Gradients that need less memory than autograd's: the loss through a head, and block checkpointing.

pub(crate) mod known_gradient;
pub mod loss;
pub mod recompute;
pub(crate) mod scratch;
mod segment;
mod tape;
