//! Names of tensors as strings: patterns, natural order, and the nearest name to one that was not found.

pub(crate) mod natural;
pub(crate) mod nearest;
pub(crate) mod pattern;
mod python_class;
mod python_flags;
mod python_re;
mod python_source;
mod replacement;
pub(crate) mod substitution;
