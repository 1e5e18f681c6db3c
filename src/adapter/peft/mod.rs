//! The PEFT directory: `adapter_config.json`, `adapter_model.safetensors` and a model card.

pub(crate) mod base;
mod card;
pub(crate) mod carried;
pub(crate) mod directory;
pub(crate) mod keys;
pub(crate) mod layouts;
pub(crate) mod mismatch;
mod scaled;
pub(crate) mod state_dict;
