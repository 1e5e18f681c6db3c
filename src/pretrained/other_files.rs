//! The files of a model directory beside its weights.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::ModelFiles;
use super::json::json;
use super::opened::INDEX;
use crate::error::{refuse, Error, Result};
use crate::regular;
use crate::storage::staging::is_staging;

/// The files beside the weights, by their paths in the directory, sorted.
#[derive(Debug, Default)]
pub(crate) struct OtherFiles {
    /// Those that go with the model whatever its weights are.
    pub(crate) carried: Vec<PathBuf>,
    /// The same weights in another form, or an adapter on them.
    pub(crate) left_out: Vec<PathBuf>,
}

/// Endings of files with weights, or with states of training.
const WEIGHTS: &str =
    "bin ckpt distcp engine ggml gguf h5 keras llamafile mlmodel msgpack nemo npz onnx ort ot pb pdopt pdparams pickle \
     pkl pt pt2 pte pth ptl safetensors tflite torchscript trt";

/// Within the names of parts, of backups and of files that were not fetched whole.
const PARTS: [&str; 8] =
    [".bin.", ".ckpt-", ".ckpt.", ".data-", ".gguf", ".onnx.data", ".onnx_data", ".safetensors"];

/// Endings of directories that are one such file.
const PACKAGES: &str = "mlmodelc mlpackage";

/// Directories of programs that keep copies of the files in them.
const STORES: [&str; 2] = [".git", ".cache"];

/// A link may lead back to a directory above.
const DEEPEST: usize = 32;

impl ModelFiles {
    /// Looks at every file in the directory and below.
    ///
    /// # Errors
    /// `CorruptFile` for what is no regular file; `Io`.
    pub(crate) fn other_files(&self) -> Result<OtherFiles> {
        let mut found = OtherFiles::default();
        self.look_below(Path::new(""), &self.modules()?, &mut found)?;
        found.carried.sort();
        found.left_out.sort();
        Ok(found)
    }

    /// The folders of further modules, each with its own weights, as Sentence Transformers lists them.
    fn modules(&self) -> Result<BTreeSet<PathBuf>> {
        let path = self.dir().join("modules.json");
        let listed = if path.exists() { json(&path)? } else { Value::Null };
        let listed = listed.as_array().into_iter().flatten();
        let paths = listed.filter_map(|module| module.get("path")?.as_str());
        Ok(paths.filter(|path| !path.is_empty()).map(PathBuf::from).collect())
    }

    fn look_below(
        &self,
        below: &Path,
        modules: &BTreeSet<PathBuf>,
        found: &mut OtherFiles,
    ) -> Result<()> {
        let dir = self.dir().join(below);
        if below.components().count() > DEEPEST {
            refuse!(Io, "'{}' is too deep: does a link lead back?", dir.display());
        }
        let failed = |e| Error::io("read", &dir, e);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // Another save into this directory, which is gone in a moment.
            if is_staging(&name) {
                continue;
            }
            let (relative, path) = (below.join(&name), dir.join(&name));
            let kind = match fs::metadata(&path) {
                Ok(found) => found.file_type(),
                // A link of a cache to weights that were never fetched.
                Err(_) if is_weights(&name) => {
                    found.left_out.push(relative);
                    continue;
                }
                Err(e) => return Err(Error::io("read", &path, e)),
            };
            let is_store = kind.is_dir()
                && (ends_in(&name, PACKAGES) || STORES.iter().any(|store| name == *store));
            let in_use =
                self.is_weights(&path) || (self.has_index() && relative == Path::new(INDEX));
            if kind.is_dir() && !is_store {
                self.look_below(&relative, modules, found)?;
            } else if is_store || (is_weights(&name) && !in_use && !modules.contains(below)) {
                found.left_out.push(relative);
            } else if !self.is_weights(&path) {
                regular::check(&path, kind)?;
                found.carried.push(relative);
            }
        }
        Ok(())
    }
}

/// `endings` are separated by spaces.
fn ends_in(name: &OsStr, endings: &str) -> bool {
    let end = Path::new(name).extension().unwrap_or_default().to_ascii_lowercase();
    endings.split(' ').any(|known| end == *known)
}

/// True for the name of a file with weights, of a part of one, of its index, or of an adapter.
fn is_weights(name: &OsStr) -> bool {
    let lower = name.to_string_lossy().to_ascii_lowercase();
    let of_index = lower.split_once(".index").map(|(file, _)| file);
    ends_in(name, WEIGHTS)
        || of_index.is_some_and(|file| ends_in(OsStr::new(file), WEIGHTS))
        || PARTS.iter().any(|part| lower.contains(part))
        || (lower.starts_with("openvino") && lower.ends_with(".xml"))
        || lower == "adapter_config.json"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_by_their_names() {
        for name in [
            "consolidated.safetensors",
            "consolidated.00.pth",
            "pytorch_model.bin",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "model.fp16.safetensors",
            "model.safetensors.index.fp16.json",
            "tf_model.h5",
            "tf_model.h5.index.json",
            "flax_model.msgpack",
            "flax_model.msgpack.index.json",
            "model-Q4_K_M.GGUF",
            "model.onnx",
            "model.onnx_data_1",
            "openvino_model.bin",
            "openvino_model.xml",
            "rust_model.ot",
            "model.ckpt.data-00000-of-00001",
            "model.ckpt-1000.index",
            "optimizer.pt",
            "model.safetensors.bak",
            "model.safetensors~",
            "model.safetensors.incomplete",
            "model.gguf.part1of2",
            "pytorch_model.bin.part1",
            "__0_0.distcp",
            "model_state.pdparams",
            "model.llamafile",
            "variables.data-00000-of-00001",
            "adapter_model.safetensors",
            "adapter_config.json",
        ] {
            assert!(is_weights(OsStr::new(name)), "{name}");
        }
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "sentencepiece.bpe.model",
            "vocab.txt",
            "merges.txt",
            "chat_template.jinja",
            "modeling_mine.py",
            "README.md",
            "README.pt.md",
            "index.json",
            "params.json",
            ".gitattributes",
        ] {
            assert!(!is_weights(OsStr::new(name)), "{name}");
        }
    }
}
