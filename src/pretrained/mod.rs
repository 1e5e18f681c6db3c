//! A Hugging Face model directory (`config.json` and `model.safetensors`, or shards with their index) or a GGUF file, and
//! how frozen weights of it are kept ([`Frozen`]).

mod base_bytes;
pub(crate) mod files;
mod frozen;
mod generation;
mod gguf;
pub(crate) mod json;
pub(crate) mod kept;
pub(crate) mod load;
mod naming;
pub(crate) mod opened;
pub(crate) mod origin;
pub(crate) mod other_files;
mod save;
pub(crate) mod tensor_file;

pub use base_bytes::BaseBytes;
pub use files::ModelFiles;
pub use frozen::{Form, Frozen, Place};
pub use gguf::export::to_gguf;
pub(crate) use naming::head::with_class_of;
pub use naming::head::Head;
#[cfg(feature = "models")]
pub(crate) use naming::layout::is_tied;
pub(crate) use naming::row::is_part_of;
pub use save::save;
