//! From the tensors of a checkpoint to the variables of the live Python model, whose names PEFT's keys use.
//!
//! Three steps: former names become present ones ([`former`]); the base model's prefix, other heads and computed buffers
//! are put right for one head ([`layout`], by the [`table`]); copies of a tied tensor go ([`ties`]).

pub(super) mod former;
pub(super) mod head;
pub(super) mod layout;
mod table;
pub(super) mod ties;
