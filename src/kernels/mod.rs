//! Products and attention in the form that is fastest on this machine.

#[cfg(feature = "models")]
pub(crate) mod attention;
pub(crate) mod number;
pub(crate) mod processor;
pub(crate) mod product;
