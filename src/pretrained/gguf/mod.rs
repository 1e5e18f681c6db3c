//! A GGUF file as a model directory: its metadata as `config.json`, its tensors under the names of transformers.

mod architecture;
mod config;
pub(crate) mod conversion;
pub(super) mod export;
mod fields;
mod names;
mod rope;
mod rope_export;
mod settings;
mod special;
mod tensors;

use serde_json::Value;

use self::architecture::Architecture;
use self::conversion::Conversion;
use self::fields::Fields;
use self::tensors::Tensors;
use crate::error::{refuse, Result};
use crate::storage::gguf::GgufFile;
use crate::storage::stored::Stored;

/// The model of a GGUF file, as its metadata tells.
#[derive(Debug)]
pub(super) struct Description {
    /// As transformers would have it in `config.json`.
    pub(super) config: Value,
    /// As it would be in `generation_config.json`, if that says more.
    pub(super) generation: Option<Value>,
    /// Each tensor with its name in memory and its way there.
    pub(super) tensors: Vec<(String, Stored, Conversion)>,
}

/// Reads the metadata. Every key that changes the computation is understood, or it is an error.
pub(super) fn described(file: &GgufFile, stored: &[Stored]) -> Result<Description> {
    let fields = Fields::of(file)?;
    let Some(architecture) = Architecture::of(&fields.architecture) else {
        refuse!(
            Unsupported,
            "'{}' has the architecture '{}', which is not implemented: choose a model of {}",
            file.path().display(),
            fields.architecture,
            Architecture::known().join(", ")
        );
    };
    let tensors = Tensors::of(file);
    let config = config::config(architecture, &fields, &tensors)?;
    fields.check_all_used()?;
    let tensors = names::named(architecture, &config, file, stored)?;
    Ok(Description { generation: fields.generation()?, config: config.value, tensors })
}
