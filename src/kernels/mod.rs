//! Products and attention in the form that is fastest on this machine.

#[cfg(all(fused, feature = "models"))]
pub mod alone;
#[cfg(feature = "models")]
pub(crate) mod attention;
#[cfg(feature = "models")]
pub(crate) mod attention_choice;
mod choice;
#[cfg(fused)]
pub(crate) mod fused;
#[cfg(not(fused))]
#[path = "fused_elsewhere.rs"]
pub(crate) mod fused;
pub(crate) mod fused_forms;
#[cfg(fused_cuda)]
mod gpu;
mod kept;
#[cfg(feature = "kernels")]
mod linear_calls;
pub(crate) mod number;
#[cfg(all(feature = "kernels", feature = "models"))]
pub(crate) mod packed;
pub(crate) mod processor;
pub(crate) mod product;
mod product_choice;
pub(crate) mod way;
