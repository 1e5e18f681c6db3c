//! A `VarStore` written as a model directory.

use std::path::Path;

use tch::nn::VarStore;
use tch::{no_grad, Tensor};

use super::origin;
use crate::error::Result;
use crate::names::natural::natural_cmp;
use crate::storage::atomic::{self, Contents};
use crate::storage::safetensors::to_bytes;

/// Writes the variables and a configuration as a directory that transformers loads: `config.json`, and
/// `model.safetensors` with the metadata that transformers requires. Tied tensors are written under each of their
/// names, and matrices that are kept in few bits ([`Frozen`](super::Frozen)) with their values. Either both files are
/// written or, on an error, none.
///
/// # Errors
/// `Io` or `MissingFile` if the operating system refuses; `KindMismatch` for a kind that the format lacks.
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
    let mut tensors = vs.variables();
    no_grad(|| -> Result<()> {
        for kept in origin::kept(vs) {
            if let Some(tensor) = tensors.get_mut(&kept.name) {
                *tensor = kept.values(tensor)?;
            }
        }
        Ok(())
    })?;
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| natural_cmp(&a.0, &b.0));
    no_grad(|| atomic::write(&model_files(dir.as_ref(), config_json, &tensors)?))
}

/// The two files of a whole model.
fn model_files(dir: &Path, config_json: &str, tensors: &[(String, Tensor)]) -> Result<Contents> {
    Ok(vec![
        (dir.join("model.safetensors"), to_bytes(tensors)?),
        (dir.join("config.json"), config_json.as_bytes().to_vec()),
    ])
}
