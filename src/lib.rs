//! LayerNorm tuning over a `tch::nn::VarStore`.

mod error;

pub use error::{Error, ErrorKind, Result};
