//! Training the active adapter: the methods of `tch::nn::Optimizer` over one flat buffer.

mod algorithm;
mod all_reduce;
mod backward;
mod clipping;
#[cfg(feature = "distributed")]
mod exchange;
mod file;
mod filled;
mod graphed;
mod group;
#[cfg(feature = "distributed")]
mod joining;
mod loss_scale;
mod mixed;
mod numbers;
mod optimizer;
mod ranks;
mod replay;
mod schedule;
mod settings;
mod state;

pub use algorithm::Algorithm;
pub use graphed::{GraphedStep, Stepped};
pub use loss_scale::DynamicLossScale;
pub use optimizer::Optimizer;
pub use schedule::{Decay, Schedule};
