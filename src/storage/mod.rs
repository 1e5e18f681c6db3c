//! Bytes on disk and tensors in memory: read, checked, mapped, written whole or not at all.

pub(crate) mod atomic;
pub(crate) mod info;
mod mapped;
pub(crate) mod safetensors;
pub(crate) mod stored;
pub(crate) mod unique_keys;
