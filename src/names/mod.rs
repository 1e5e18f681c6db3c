//! Names of tensors as strings: which match a pattern, their order, and the nearest to a name that was not found.

pub(crate) mod natural;
pub(crate) mod nearest;
pub(crate) mod pattern;
