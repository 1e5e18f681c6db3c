//! Cross-entropy through the head of a language model, in chunks: the logits of a batch are never held at once.
//!
//! For a vocabulary of 128,256 the logits of 4,096 tokens take 2 GB in f32, and their gradient as much again; hidden
//! states of size 4,096 take 64 MB. [`LinearCrossEntropy`] computes the logits of some tokens, their loss and its
//! gradient with respect to the hidden states, and reuses the memory for the next tokens. A frozen head needs nothing
//! more.

mod chunks;
mod compute;
mod head;
mod head_weight;
mod linear_cross_entropy;
mod targets;

#[cfg(feature = "models")]
pub(crate) use head_weight::HeadWeight;
pub use linear_cross_entropy::{LinearCrossEntropy, Reduction, IGNORE_INDEX};
