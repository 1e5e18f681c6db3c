//! Adapters on the variables of a `VarStore`: selecting, attaching, switching, combining, PEFT directories.

pub(crate) mod attachment;
mod by_adapter;
mod config;
mod diff;
pub(crate) mod flat;
pub(crate) mod gradients;
#[cfg(feature = "plots")]
mod heat_map;
mod interpolation;
mod merge;
mod merged;
mod merged_gguf;
mod mixed;
mod model;
mod new_adapter;
mod options;
mod peft;
mod recipe;
mod registry;
mod samples;
mod scaling;
mod selection;
mod stack;
mod status;
mod switching;
mod sync;
mod task_type;
mod trainable;
mod variables;
pub(crate) mod weights;

pub use config::{LnTuningConfig, Modules, ParsedConfig};
pub use diff::{AdapterDiff, TensorDiff};
pub use flat::Precision;
pub use interpolation::{InterpolateOptions, Interpolation};
pub use merge::{merge, merge_with, MergeReport};
pub use model::{LnTuningModel, DEFAULT_ADAPTER};
pub use options::{AdapterOptions, LoadOptions, MergeOptions, SaveKind, SaveOptions};
pub use peft::directory::SavedAdapter;
pub use peft::state_dict::LoadReport;
pub use recipe::Recipe;
pub use selection::{Layers, NormPlace, Norms, Role, SelectedModule, Selection, UnusedModule};
pub use status::{LayerStatus, ModelStatus, TrainableParameters};
pub use switching::DisabledAdapters;
pub use task_type::TaskType;
