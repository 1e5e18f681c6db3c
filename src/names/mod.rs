//! Names of tensors as strings: patterns, natural order, the names of wrappers, the nearest name to one not found.

pub(crate) mod natural;
pub(crate) mod nearest;
pub(crate) mod pattern;
pub(crate) mod wrappers;
