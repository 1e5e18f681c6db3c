//! A Hugging Face model directory: `config.json` and `model.safetensors`, or shards with their index.

mod files;
mod load;
mod merge;
mod names;

pub use files::ModelFiles;
pub use merge::{merge, MergeReport};

use std::path::Path;

use tch::nn::VarStore;
use tch::no_grad;

use crate::checkpoint;
use crate::error::Result;
use crate::natural::natural_cmp;

/// Writes the variables and a configuration as a directory that transformers loads: `config.json`, and
/// `model.safetensors` with the metadata that it asks for. Tied tensors are written under each of their names.
/// Either both files are written or, on an error, none.
///
/// # Errors
/// `Io` or `MissingFile` where the operating system refuses; `KindMismatch` for a kind that the format lacks.
///
/// ```
/// # use tch::{nn, Device};
/// let vs = nn::VarStore::new(Device::Cpu);
/// nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
/// let dir = tempfile::tempdir()?;
/// ln_tuning::pretrained::save(&vs, dir.path(), r#"{"model_type": "mine"}"#)?;
/// assert!(dir.path().join("model.safetensors").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "save_pretrained")]
pub fn save(vs: &VarStore, dir: impl AsRef<Path>, config_json: &str) -> Result<()> {
    let mut tensors: Vec<_> = vs.variables().into_iter().collect();
    tensors.sort_by(|a, b| natural_cmp(&a.0, &b.0));
    no_grad(|| checkpoint::write(&checkpoint::model_files(dir.as_ref(), config_json, &tensors)?))
}
