//! From the tensors of a checkpoint to the variables of the Python model in memory, whose names PEFT's keys use.
//!
//! Three steps: former names become present ones ([`former`]); for one head, the base model's prefix is added or
//! removed and tensors without a variable are dropped ([`layout`], by the [`table`]); copies of a tied tensor are
//! dropped ([`ties`]).

pub(super) mod former;
pub(super) mod head;
pub(super) mod layout;
pub(super) mod row;
mod table;
pub(super) mod ties;
