//! Names of tensors as strings: patterns, natural order, and the nearest name to one that was not found.

pub(crate) mod natural;
pub(crate) mod nearest;
pub(crate) mod pattern;
