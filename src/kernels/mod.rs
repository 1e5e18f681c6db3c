//! Products and attention in the form that is fastest on this machine.

#[cfg(feature = "models")]
pub(crate) mod attention;
#[cfg(feature = "kernels")]
mod linear_calls;
mod measured;
pub(crate) mod number;
#[cfg(all(feature = "kernels", feature = "models"))]
pub(crate) mod packed;
pub(crate) mod processor;
pub(crate) mod product;
