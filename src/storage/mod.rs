//! Tensors on disk: read, checked, memory-mapped, and written completely or not at all.

pub mod atomic;
#[cfg(target_os = "linux")]
mod exchange;
pub(crate) mod finite;
pub mod gguf;
pub(crate) mod info;
mod mapped;
#[cfg(all(target_os = "linux", feature = "models"))]
pub(crate) mod read_ahead;
pub(crate) mod safetensors;
pub(crate) mod shard;
pub(crate) mod staging;
pub(crate) mod stored;
pub(crate) mod unique_keys;
pub mod yaml;
