#![doc = include_str!("../README.md")]
//!
//! # A tour of the crate
//!
//! - [`LnTuningConfig`] says which modules are tuned; [`Selection`] is what that means for a model.
//! - [`LnTuningModel`] attaches adapters to a `VarStore`, switches between them, combines, compares, merges, loads and
//!   saves them.
//!   [`AdapterOptions`], [`LoadOptions`] and [`SaveOptions`] are for where the defaults do not fit.
//! - [`Optimizer`] trains the active adapter.
//! - [`device`] finds the GPU; [`models`] has models with the names of transformers; [`pretrained`] opens their
//!   directories, [`merge`] puts an adapter into one; [`SavedAdapter`] reads an adapter's.
//! - Every fallible operation returns an [`Error`]; its [`kind`](Error::kind) is there to be matched on.

#![deny(missing_docs)]

mod adapter;
mod autograd;
pub mod device;
mod error;
mod kernels;
#[cfg(feature = "models")]
pub mod models;
mod names;
mod optim;
pub mod pretrained;
mod storage;

pub use adapter::{
    merge, AdapterDiff, AdapterOptions, DisabledAdapters, InterpolateOptions, Interpolation,
    LayerStatus, LnTuningConfig, LnTuningModel, LoadOptions, LoadReport, MergeReport, ModelStatus,
    Modules, Norms, ParsedConfig, Precision, SaveKind, SaveOptions, SavedAdapter, SelectedModule,
    Selection, TaskType, TensorDiff, TrainableParameters, DEFAULT_ADAPTER,
};
pub use autograd::{loss, recompute};
pub use error::{Error, ErrorKind, Result};
pub use names::natural::natural_cmp;
pub use optim::{Algorithm, Decay, Optimizer, Schedule};
pub use storage::info::VariableInfo;
pub use tch::nn::{AdamW, Sgd};
