//! A Hugging Face model directory: `config.json` and `model.safetensors`, or shards with their index.

pub(crate) mod files;
mod generation;
mod head;
mod load;
mod names;
mod save;
mod stub;

pub use files::ModelFiles;
pub use head::Head;
pub use save::save;
