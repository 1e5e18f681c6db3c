//! LayerNorm tuning over a `tch::nn::VarStore`.

#![deny(missing_docs)]

mod adapter;
mod architectures;
mod attachment;
mod checkpoint;
mod config;
pub mod device;
mod error;
mod flat;
mod model;
#[cfg(feature = "models")]
pub mod models;
mod module_tree;
mod natural;
mod nearest;
mod optim;
mod options;
mod pattern;
pub mod pretrained;
mod rules;
mod selection;
mod state_dict;
mod status;
mod strict;
mod switch;
mod variables;

pub use architectures::Norms;
pub use config::{LnTuningConfig, Modules, ParsedConfig, TaskType};
pub use error::{Error, ErrorKind, Result};
pub use flat::Precision;
pub use model::{LnTuningModel, DEFAULT_ADAPTER};
pub use module_tree::VariableInfo;
pub use natural::natural_cmp;
pub use optim::{Algorithm, Optimizer};
pub use options::{AdapterOptions, LoadOptions, SaveKind, SaveOptions};
pub use selection::{SelectedModule, Selection};
pub use state_dict::LoadReport;
pub use status::TrainableParameters;
pub use switch::DisabledAdapters;
pub use tch::nn::{AdamW, Sgd};
