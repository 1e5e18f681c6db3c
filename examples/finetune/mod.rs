//! What `finetune_lm` and `finetune_classifier` share: everything but the data and the model.

pub mod batches;
pub mod checkpoint;
pub mod cli;
pub mod curves;
pub mod data;
pub mod digest;
pub mod interrupt;
pub mod memory;
pub mod metrics;
pub mod order;
pub mod prefetch;
pub mod preflight;
pub mod progress;
pub mod settings;
pub mod task;
pub mod tensorboard;
pub mod tokenizer;
pub mod trainer;
mod yaml;
