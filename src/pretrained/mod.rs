//! A Hugging Face model directory: `config.json` and `model.safetensors`, or shards with their index.

pub(crate) mod files;
mod load;
mod names;
mod save;

pub use files::ModelFiles;
pub use save::save;
