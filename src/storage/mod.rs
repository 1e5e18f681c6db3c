//! Tensors on disk: read, checked, memory-mapped, and written completely or not at all.

pub(crate) mod atomic;
pub(crate) mod finite;
pub(crate) mod info;
mod mapped;
pub(crate) mod safetensors;
pub(crate) mod shard;
pub(crate) mod stored;
pub(crate) mod unique_keys;
