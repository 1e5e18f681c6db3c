//! LayerNorm tuning for [`tch`]: train only the normalisation weights of a model, and exchange them with Hugging Face
//! PEFT.
//!
//! # A tour of the crate
//!
//! | to do | there is |
//! |---|---|
//! | say which modules train | [`LnTuningConfig`]; [`Selection`] is the answer for one model |
//! | attach adapters, switch, combine, compare, merge, save and load them | [`LnTuningModel`], with [`AdapterOptions`], [`LoadOptions`] and [`SaveOptions`] where the defaults do not fit |
//! | train the active adapter | [`Optimizer`], [`Schedule`] |
//! | find the GPU | [`device`] |
//! | replay a short step on a GPU as one CUDA graph | [`GraphedStep`] |
//! | train in many processes | `distributed` (a feature): `torchrun` starts them, one all-reduce per update |
//! | open a model of Hugging Face | [`models`]; [`pretrained`] reads and writes their directories, [`merge`] puts an adapter into one |
//! | show a model images beside texts | [`models::ImageTextToText`]; [`LnTuningConfig::recipe`] is a setting of the method's paper |
//! | train with a large vocabulary | [`loss::LinearCrossEntropy`]: no logits of the whole batch |
//! | train on long inputs | [`recompute`]: block checkpointing |
//! | keep a large base in few bits, or off the device | [`pretrained::Frozen`]: GGUF blocks, int8, NF4, streamed; chosen by [`models::Load::frozen`] |
//! | read and write GGUF files | [`gguf`]; [`pretrained::to_gguf`] makes one of a directory |
//! | read an adapter without a model | [`SavedAdapter`] |
//!
//! Every fallible operation returns an [`Error`]. Match on its [`kind`](Error::kind).
//!
//! ## How it works
//!
//! A layer of tch shares its variables with the `VarStore`. An adapter puts its own storage behind the selected
//! variables, so the model computes with it and needs no wrapper. Switching, disabling and merging put another storage
//! there. The weights of an adapter lie in one buffer, which the optimiser updates as a whole.
//!
//! The weights that train are kept in f32 ([`Precision::Master`]); a model in bf16 computes with a bf16 copy, and its
//! fused kernels stay in use. This matters: at w ≈ 1, where norm weights start, an update of 0.0001 rounds to nothing
//! in bf16.
//!
//! Without `target_modules`, PEFT's table says which norms of an architecture train. For an architecture that it lacks,
//! every norm trains that is found by name and shape. [`Norms::All`] takes every norm.
//!
//! [`Optimizer`] has the methods of [`tch::nn::Optimizer`]. tch's own `nn::AdamW::default().build(&vs, lr)` works on
//! the attached `VarStore` too.
//!
//! ## Models of Hugging Face
//!
//! The [`models`] read shards, tied embeddings and the names of older checkpoints. A tensor that is missing, left over
//! or of another shape is an error that names it, and so is an option of `config.json` that is not implemented. On the
//! CPU and in the file's own kind, weights are used where they are on disk, as a copy-on-write memory map.
//!
//! A GGUF file of llama.cpp is a model wherever a directory is one:
//! `Decoder::from_pretrained("model.gguf", device, kind)`. Its tensors have the names of transformers, so that adapters
//! of PEFT fit.
//!
//! `Decoder::generate` continues text (greedy, temperature, top-k, top-p, stop tokens, batches with padding on the
//! left). `Inputs::documents` packs several documents into a row; none sees another. `Decoder::loss` takes the
//! cross-entropy without logits of the whole batch, and `Decoder::loss_with` adds block checkpointing.
//!
//! ## The names of PEFT
//!
//! | PEFT | here |
//! |---|---|
//! | `LNTuningConfig(target_modules=[…])`, `(target_modules="regex")` | [`LnTuningConfig::target_modules`], [`LnTuningConfig::target_pattern`] |
//! | `exclude_modules`, `modules_to_save`, `task_type` | the same |
//! | `LNTuningConfig.from_pretrained`, `to_dict` | [`LnTuningConfig::from_file`] (JSON or YAML), [`to_json`](LnTuningConfig::to_json), [`to_yaml`](LnTuningConfig::to_yaml) |
//! | `get_peft_model(model, config)` | [`LnTuningModel::new`] |
//! | `get_peft_model(model, config, adapter_name)` | [`LnTuningModel::with_adapter_name`] |
//! | `PeftModel.from_pretrained(model, dir)` | [`LnTuningModel::from_pretrained`] |
//! | `print_trainable_parameters()` | `println!("{}", tuned.trainable_parameters())` |
//! | `save_pretrained(dir)` | the same |
//! | `add_adapter`, `load_adapter`, `set_adapter`, `delete_adapter` | the same |
//! | `active_adapter`, `peft_config.keys()` | [`active_adapter`](LnTuningModel::active_adapter), [`adapters`](LnTuningModel::adapters) |
//! | `model(**x, adapter_names=[…])`, `generate(adapter_names=[…])` (PEFT has it for LoRA and a few others) | [`Inputs::adapter_names`](models::Inputs::adapter_names), for other models [`by_adapter`](LnTuningModel::by_adapter) |
//! | `with model.disable_adapter():` | [`disable`](LnTuningModel::disable) (a guard), [`with_disabled`](LnTuningModel::with_disabled) |
//! | `enable_adapter_layers()` | [`enable`](LnTuningModel::enable), after a guard was forgotten |
//! | `merge_adapter`, `unmerge_adapter`, `merge_and_unload`, `unload` | the same |
//! | `get_layer_status`, `get_model_status` | [`layer_status`](LnTuningModel::layer_status), [`model_status`](LnTuningModel::model_status) |
//! | `add_weighted_adapter` (PEFT has it for LoRA only) | [`interpolate`](LnTuningModel::interpolate) |
//! | `get_peft_model_state_dict`, `set_peft_model_state_dict` | [`state_dict`](LnTuningModel::state_dict), [`load_state_dict`](LnTuningModel::load_state_dict) |
//! | `key_mapping`, `ignore_mismatched_sizes` | [`LoadOptions`], [`SaveOptions`] |
//! | `low_cpu_mem_usage`, `autocast_adapter_dtype` | not needed: an adapter is one small buffer, and [`Precision`] says its kind |
//! | `transformers.get_scheduler` | [`Schedule`] |
//! | `layers_to_transform` (PEFT has it for other methods) | [`AdapterOptions::layers`] |
//!
//! These differ on purpose:
//! - The weights that train are in f32.
//! - A string in `modules_to_save` is one name; PEFT takes its letters.
//! - Saving while merged saves the adapter; PEFT saves the base.
//! - A container such as `mlp` is tuned as the modules in it.
//! - A `.bin` file is refused, since reading a pickle can run code. The error has the line of Python that converts it.
//!
//! PEFT loads what is saved here without a warning, except for the one that it gives for its own LayerNorm adapters too
//! ("Unsupported layer type").
//!
#![doc = include_str!(concat!(env!("OUT_DIR"), "/README.md"))]
#![deny(missing_docs)]

mod adapter;
mod autograd;
pub mod device;
#[cfg(feature = "distributed")]
pub mod distributed;
mod error;
mod kernels;
mod memory;
mod mixed;
#[cfg(feature = "models")]
pub mod models;
mod names;
mod optim;
#[cfg(all(target_os = "linux", feature = "models"))]
mod pages;
pub mod pretrained;
mod quantised;
#[doc(hidden)] // For the program.
pub mod regular;
mod storage;

pub use adapter::{
    merge, merge_with, AdapterDiff, AdapterOptions, DisabledAdapters, InterpolateOptions,
    Interpolation, LayerStatus, Layers, LnTuningConfig, LnTuningModel, LoadOptions, LoadReport,
    MergeOptions, MergeReport, ModelStatus, Modules, NormPlace, Norms, ParsedConfig, Precision,
    Recipe, Role, SaveKind, SaveOptions, SavedAdapter, SelectedModule, Selection, TaskType,
    TensorDiff, TrainableParameters, UnusedModule, DEFAULT_ADAPTER,
};
pub use autograd::{loss, recompute};
pub use error::{Error, ErrorKind, Result};
#[cfg(all(fused, feature = "models"))]
#[doc(hidden)] // For a benchmark of each, and for the checks on a GPU.
pub use kernels::alone;
pub use names::natural::natural_cmp;
pub use optim::{Algorithm, Decay, DynamicLossScale, GraphedStep, Optimizer, Schedule, Stepped};
pub use storage::gguf;
pub use storage::info::VariableInfo;
#[doc(hidden)] // For the program.
pub use storage::{atomic, yaml};
pub use tch::nn::{AdamW, Sgd};
