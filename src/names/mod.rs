//! Names of tensors as strings: patterns, natural order, the names of wrappers, the nearest name to one not found.

pub(crate) mod natural;
pub(crate) mod nearest;
pub(crate) mod pattern;
mod python_class;
mod python_flags;
mod python_re;
mod python_source;
mod replacement;
pub(crate) mod substitution;
pub(crate) mod wrappers;
