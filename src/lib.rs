//! LayerNorm tuning over a `tch::nn::VarStore`.

#![deny(missing_docs)]

mod error;

pub use error::{Error, ErrorKind, Result};
