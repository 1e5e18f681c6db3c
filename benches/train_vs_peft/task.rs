//! The task of a child process, ours and Python's alike.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::work::Batch;

/// The one argument of a child, as JSON. The child says what it has made in a line of JSON, its [`Ready`]. Then, for
/// every line "N", it makes step N and answers with its time in milliseconds and its loss; for "memory", with
/// megabytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    pub dir: PathBuf,
    pub kind: String,
    pub device: String,
    pub threads: i32,
    /// `plain`, `recompute`, `graph`, `floor`, `generate`, `eager`, `compile` or `checkpoint`; an encoder that classifies
    /// knows `plain`, `eager` and `compile`.
    pub how: String,
    /// The way in which our frozen matrices are kept, as in `base:` of a training file.
    pub base: String,
    pub batch: Batch,
}

/// The first line of a child, when its model is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ready {
    /// The library and its version.
    pub library: String,
    /// The name of the GPU, where the child knows it.
    pub device_name: Option<String>,
    /// The kernels of attention that it leaves to libtorch to choose from.
    pub attention: String,
    /// Bytes of all weights.
    pub weights: u64,
}
