//! A model directory as a GGUF file: the way back, for the families whose file says all that their configuration does.

use serde_json::Value;
use tch::no_grad;

use super::architecture::Architecture;
use super::conversion::Conversion;
use super::rope_export;
use crate::error::{refuse, Result};
use crate::pretrained::files::ModelFiles;
use crate::pretrained::naming::head::Head;
use crate::pretrained::tensor_file::TensorFile;
use crate::quantised::{Encoding, Quantised};
use crate::storage::finite::check_cast;
use crate::storage::gguf::{BlockType, GgufWriter, MetadataValue};
use crate::storage::safetensors::bytes_of;

/// Types of transformers, and their architectures in llama.cpp.
const FAMILIES: [(&str, &str); 4] =
    [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];

/// Types of matrices, with the numbers that `general.file_type` has for them.
const TYPES: [(BlockType, u32); 4] =
    [(BlockType::F32, 0), (BlockType::F16, 1), (BlockType::Q8_0, 7), (BlockType::BF16, 32)];

/// A model directory as a GGUF file: its configuration as metadata, its tensors under the names and in the order of
/// llama.cpp. Matrices are in `matrices`: `F32`, `F16`, `BF16` or `Q8_0`; those whose rows are no whole blocks are in
/// `F16`. Everything else is in f32. Tensors are read when they are written, one after the other.
///
/// The tokenizer is not in it: llama.cpp needs its metadata too.
///
/// # Errors
/// `Unsupported` for other types of models than llama, mistral, qwen2 and qwen3, for other heads than that of a
/// language model, and for what such a file cannot say: other ropes than the default one, linear, YaRN's and, for
/// llama and mistral, that of Llama 3; windows, other activations than SiLU; `UnexpectedKeys` for a tensor without a
/// name there; `InvalidConfig` for a missing size; `InvalidArgument` for another type of matrices. Writing gives
/// `NonFinite` for a weight that the new type cannot hold.
///
/// ```no_run
/// use ln_tuning::gguf::BlockType;
/// use ln_tuning::pretrained::{to_gguf, ModelFiles};
/// let files = ModelFiles::open("Llama-3.2-1B")?;
/// to_gguf(&files, BlockType::Q8_0)?.write("Llama-3.2-1B.Q8_0.gguf")?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
pub fn to_gguf(files: &ModelFiles, matrices: BlockType) -> Result<GgufWriter<'_>> {
    let source = Source { files, config: files.config() };
    let architecture = source.architecture()?;
    let Some((_, file_type)) = TYPES.iter().find(|(known, _)| *known == matrices) else {
        let known = TYPES.map(|(known, _)| known.to_string()).join(", ");
        refuse!(InvalidArgument, "{matrices} is not a type that can be written, expected {known}");
    };
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", architecture.name)?;
    writer.set("general.type", "model")?;
    let dir = std::fs::canonicalize(files.dir()).unwrap_or_else(|_| files.dir().to_owned());
    writer.set("general.name", &*dir.file_name().unwrap_or_default().to_string_lossy())?;
    writer.set("general.file_type", MetadataValue::U32(*file_type))?;
    writer.set("general.quantization_version", MetadataValue::U32(2))?;
    let heads = source.settings(architecture, &mut writer)?;
    for place in files.tensors() {
        let (name, conversion) = named(architecture, heads, &place.name).ok_or_else(|| {
            crate::error::refusal!(
                UnexpectedKeys,
                "'{}' in '{}' has no name in a GGUF file of the architecture '{}'",
                place.name,
                files.dir().display(),
                architecture.name
            )
        })?;
        let shape = place.shape();
        let whole = |block_type: BlockType| shape[1] % block_type.block_len() as i64 == 0;
        let block_type = match shape.len() {
            2 if whole(matrices) => matrices,
            2 => BlockType::F16,
            _ => BlockType::F32,
        };
        writer.add_later(&name, block_type, &shape, move || {
            bytes(files, place, conversion, block_type)
        })?;
    }
    Ok(writer)
}

/// The bytes of a tensor in its new type.
fn bytes(
    files: &ModelFiles,
    place: &TensorFile,
    conversion: Conversion,
    block_type: BlockType,
) -> Result<Vec<u8>> {
    no_grad(|| {
        let stored = conversion.stored(&place.name, &files.tensor(&place.name)?)?;
        match block_type.kind() {
            Some(kind) => {
                let cast = stored.f_to_kind(kind)?;
                check_cast(&format!("'{}'", place.name), &stored, &cast)?;
                bytes_of(&cast)
            }
            None => bytes_of(Quantised::of(&stored, Encoding::Block(block_type))?.data()),
        }
    })
}

/// The name in the file of a tensor in memory, and its conversion there.
fn named(
    architecture: &Architecture,
    (heads, kv_heads): (i64, i64),
    name: &str,
) -> Option<(String, Conversion)> {
    let (module, last) = name.rsplit_once('.')?;
    let mut block = "";
    let mut parts: Vec<&str> = module.split('.').collect();
    if let Some(number) = parts.iter_mut().find(|part| part.parse::<u32>().is_ok()) {
        block = std::mem::replace(number, "{}");
    }
    let module = parts.join(".");
    let all = architecture.names.iter().copied().flatten();
    let (stem, _) = all.into_iter().find(|(_, known)| *known == module)?;
    let conversion = match *stem {
        "blk.attn_q" if architecture.paired => Conversion::Paired { heads },
        "blk.attn_k" if architecture.paired => Conversion::Paired { heads: kv_heads },
        _ => Conversion::AsStored,
    };
    Some((format!("{}.{last}", stem.replacen("blk.", &format!("blk.{block}."), 1)), conversion))
}

/// The directory that is read.
struct Source<'f> {
    files: &'f ModelFiles,
    config: &'f Value,
}

impl Source<'_> {
    fn architecture(&self) -> Result<&'static Architecture> {
        let model_type = self.files.model_type().unwrap_or("no model_type");
        let found = FAMILIES.iter().find(|(known, _)| *known == model_type);
        let found = found.filter(|_| self.files.gguf().is_none());
        match found.and_then(|(_, name)| Architecture::of(name)) {
            Some(architecture) if self.files.head() == Head::LanguageModel => Ok(architecture),
            _ => refuse!(
                Unsupported,
                "'{}' is a model of type {model_type} with the head {:?}; a directory of llama, mistral, qwen2 or qwen3 with \
                 the head of a language model can become a GGUF file. Convert others with llama.cpp's \
                 convert_hf_to_gguf.py",
                self.files.dir().display(),
                self.files.head()
            ),
        }
    }

    /// Sets the sizes, and gives the numbers of heads.
    fn settings(&self, architecture: &Architecture, writer: &mut GgufWriter) -> Result<(i64, i64)> {
        let (keys, name) = (&architecture.keys, architecture.name);
        let heads = self.size(keys.heads)?;
        let kv_heads = self.size_or(keys.kv_heads, heads)?;
        let width = self.size(keys.hidden)?;
        let head_dim = match self.size_or("head_dim", 0)? {
            // qwen3 has 128 where its configuration does not say.
            0 if name == "qwen3" => 128,
            0 => width / heads.max(1),
            own => own,
        };
        for (key, size) in [
            ("context_length", self.size(keys.positions)?),
            ("embedding_length", width),
            ("block_count", self.size(keys.layers)?),
            ("feed_forward_length", self.size(keys.intermediate)?),
            ("attention.head_count", heads),
            ("attention.head_count_kv", kv_heads),
            ("attention.key_length", head_dim),
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
            ("vocab_size", self.size("vocab_size")?),
        ] {
            let Ok(size) = u32::try_from(size) else {
                refuse!(InvalidConfig, "'{key}' would be {size}, expected a size below 2^32");
            };
            writer.set(&format!("{name}.{key}"), MetadataValue::U32(size))?;
        }
        let eps = self.number(keys.eps)?.unwrap_or(1e-6);
        let key = format!("{name}.attention.layer_norm_rms_epsilon");
        writer.set(&key, MetadataValue::F32(eps as f32))?;
        let positions = self.size(keys.positions)?;
        let rope = rope_export::exported(self.config, head_dim, positions, name == "llama");
        let rope = match rope {
            Ok(rope) => rope,
            Err((key, found, expected)) => return self.refuse(&key, &found, &expected),
        };
        for (key, value) in rope.metadata {
            writer.set(&format!("{name}.{key}"), value)?;
        }
        if let Some(factors) = rope.factors {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            writer.add("rope_freqs.weight", BlockType::F32, &[factors.len() as i64], bytes)?;
        }
        self.check_rest()?;
        Ok((heads, kv_heads))
    }

    /// Refuses what changes the computation and has no place in the file.
    fn check_rest(&self) -> Result<()> {
        let get = |key: &str| self.config.get(key).filter(|value| !value.is_null());
        match get("hidden_act").and_then(Value::as_str) {
            None | Some("silu" | "swish") => (),
            Some(other) => return self.refuse("hidden_act", other, "silu"),
        }
        let windows = get("use_sliding_window").map_or_else(
            || self.files.model_type() == Some("mistral") && get("sliding_window").is_some(),
            |used| used != &Value::Bool(false),
        );
        let window = get("sliding_window").and_then(Value::as_i64).unwrap_or(0);
        if windows && window < self.size("max_position_embeddings")? {
            return self.refuse("sliding_window", &window.to_string(), "none");
        }
        Ok(())
    }

    fn size(&self, key: &str) -> Result<i64> {
        match self.size_or(key, 0)? {
            0 => self.refuse(key, "missing", "a size above 0"),
            size => Ok(size),
        }
    }

    fn size_or(&self, key: &str, default: i64) -> Result<i64> {
        match self.config.get(key).filter(|value| !value.is_null()) {
            None => Ok(default),
            Some(value) => match value.as_i64() {
                Some(size) if size > 0 => Ok(size),
                _ => self.refuse(key, &value.to_string(), "a size above 0"),
            },
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.config.get(key).filter(|value| !value.is_null()) {
            Some(value) if value.as_f64().is_none() => {
                self.refuse(key, &value.to_string(), "a number")
            }
            value => Ok(value.and_then(Value::as_f64)),
        }
    }

    fn refuse<T>(&self, key: &str, found: &str, expected: &str) -> Result<T> {
        refuse!(
            Unsupported,
            "'{key}' in the config.json of '{}' is {found}, expected {expected} for a GGUF file: convert it with \
             llama.cpp's convert_hf_to_gguf.py",
            self.files.dir().display()
        )
    }
}
