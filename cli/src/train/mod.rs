//! Training: everything but the data and the model of a task.

pub mod batches;
mod by_place;
mod checkpoint;
mod curves;
pub mod data;
pub mod detect;
mod evaluation;
pub mod example;
pub mod former;
pub mod interrupt;
mod lr_finder;
pub mod memory;
mod metrics;
pub mod order;
mod prefetch;
mod preflight;
pub mod ranks;
mod report;
pub mod settings;
pub mod several;
pub mod shift;
pub mod start;
pub mod task;
mod tensorboard;
mod trainer;
mod update;
pub mod yaml;
