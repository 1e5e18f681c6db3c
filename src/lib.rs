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
//!   directories and merges adapters into them; [`SavedAdapter`] reads an adapter's.
//! - Every fallible operation returns an [`Error`]; its [`kind`](Error::kind) is there to be matched on.

#![deny(missing_docs)]

mod adapter;
mod attachment;
mod checkpoint;
mod config;
pub mod device;
mod diff;
mod error;
mod flat;
#[cfg(feature = "plots")]
mod heat_map;
mod interpolation;
pub mod loss;
mod mapped;
mod model;
#[cfg(feature = "models")]
pub mod models;
mod natural;
mod optim;
mod options;
mod pattern;
pub mod pretrained;
mod processor;
mod product;
pub mod recompute;
mod selection;
mod state_dict;
mod status;
mod strict;
mod surrogate;
mod switch;
mod variables;

pub use checkpoint::SavedAdapter;
pub use config::{LnTuningConfig, Modules, ParsedConfig, TaskType};
pub use diff::{AdapterDiff, TensorDiff};
pub use error::{Error, ErrorKind, Result};
pub use flat::Precision;
pub use interpolation::{InterpolateOptions, Interpolation};
pub use model::{LnTuningModel, DEFAULT_ADAPTER};
pub use natural::natural_cmp;
pub use optim::{Algorithm, Decay, Optimizer, Schedule};
pub use options::{AdapterOptions, LoadOptions, SaveKind, SaveOptions};
pub use selection::{Norms, SelectedModule, Selection, VariableInfo};
pub use state_dict::LoadReport;
pub use status::{LayerStatus, ModelStatus, TrainableParameters};
pub use switch::DisabledAdapters;
pub use tch::nn::{AdamW, Sgd};
