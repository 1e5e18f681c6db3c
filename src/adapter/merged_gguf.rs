//! The GGUF file that merging makes: a copy of the base's with the adapter's weights in it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use tch::{no_grad, Kind};

use super::merged::Merged;
use crate::error::{refusal, refuse, Result};
use crate::names::natural::natural_cmp;
use crate::pretrained::files::ModelFiles;
use crate::pretrained::tensor_file::TensorFile;
use crate::storage::gguf::{
    BlockType, GgufFile, GgufTensor, GgufWriter, MetadataArray, MetadataValue, ValueType,
};
use crate::storage::safetensors::bytes_of;
use crate::storage::stored::Stored;

/// The copy. All checks come before the first write.
pub(super) fn copy<'f>(
    files: &'f ModelFiles,
    file: &'f GgufFile,
    merged: &Merged,
    (adapter, scale): (&Path, f64),
) -> Result<GgufWriter<'f>> {
    let mut by_key: BTreeMap<&str, Vec<(&TensorFile, &Stored)>> = BTreeMap::new();
    let refused = |brought: &str| {
        refusal!(
            Unsupported,
            "the adapter brings {brought}, which '{}' has no tensor of its own for (a new head, tied embeddings, another \
             vocabulary): merge it into the model directory that the file was made from, and convert that",
            file.path().display()
        )
    };
    for (name, stored) in merged.replaced() {
        let place = files.find(name).filter(|place| place.shape() == stored.shape);
        let Some(place) = place.filter(|_| !merged.is_untied(name)) else {
            return Err(refused(&format!("'{name}' of shape {:?}", stored.shape)));
        };
        by_key.entry(place.stored.key.as_str()).or_default().push((place, stored));
    }
    if !merged.keeps_form() {
        return Err(refused("another configuration"));
    }
    check_tied(files, file, &by_key)?;
    let quantised: Vec<String> = by_key
        .keys()
        .filter_map(|key| file.find(key))
        .filter(|tensor| tensor.block_type.kind().is_none())
        .map(|tensor| format!("'{}' ({})", tensor.name, tensor.block_type))
        .collect();
    if !quantised.is_empty() {
        refuse!(
            Unsupported,
            "the adapter trains what is quantised in '{}', so that its weights would be lost in part: {}. Merge it into \
             the model directory that the file was made from and convert that, or train norms alone",
            file.path().display(),
            quantised.join(", ")
        );
    }
    let mut writer = GgufWriter::copy_of(file)?;
    let mut keys: Vec<&str> = by_key.keys().copied().collect();
    keys.sort_by(|a, b| natural_cmp(a, b));
    for key in &keys {
        let Some(tensor) = file.find(key) else { continue };
        let (block_type, bytes) = no_grad(|| replaced(files, file, tensor, merged, &by_key[key]))?;
        if block_type == tensor.block_type {
            writer.replace(key, 0, &bytes)?;
        } else {
            writer.retype(key, block_type, bytes)?;
        }
    }
    let name = |path: &Path| {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let keys: Vec<MetadataValue> = keys.into_iter().map(MetadataValue::from).collect();
    writer.set("ln_tuning.adapter", name(adapter).as_str())?;
    writer.set("ln_tuning.base", name(file.path()).as_str())?;
    // A base that is a merged file itself may say another one.
    if scale != 1. || file.metadata().get("ln_tuning.scale").is_some() {
        writer.set("ln_tuning.scale", MetadataValue::F64(scale))?;
    }
    writer.set("ln_tuning.tensors", MetadataArray::new(ValueType::String, &keys)?)?;
    Ok(writer)
}

/// Refuses a change of the embedding alone where the file has a copy of it as the head.
fn check_tied(
    files: &ModelFiles,
    file: &GgufFile,
    by_key: &BTreeMap<&str, Vec<(&TensorFile, &Stored)>>,
) -> Result<()> {
    let copies: HashSet<&str> = files.left_out().into_iter().collect();
    let tied = ["output.weight", "token_embd.weight"];
    if tied.iter().any(|key| by_key.contains_key(key))
        && tied.iter().any(|key| copies.contains(key))
    {
        refuse!(
            Unsupported,
            "the adapter trains embeddings of which '{}' has two copies, the embedding and the head: merge it into the \
             model directory that the file was made from, and convert that",
            file.path().display()
        );
    }
    Ok(())
}

/// The type and the bytes of a tensor with the adapter's weights in it: its own type if that holds them, otherwise f32.
fn replaced(
    files: &ModelFiles,
    file: &GgufFile,
    tensor: &GgufTensor,
    merged: &Merged,
    parts: &[(&TensorFile, &Stored)],
) -> Result<(BlockType, Vec<u8>)> {
    let former = file.tensor(tensor)?;
    let own = former.f_kind()?;
    let wide = if own == Kind::Double { own } else { Kind::Float };
    let whole = former.f_to_kind(wide)?.f_contiguous()?.f_view([-1])?;
    for (place, stored) in parts {
        let memory = merged.adapter().read(stored)?.f_to_kind(wide)?;
        // A tensor that did not change keeps its bytes, which the way to memory and back may round.
        let before = place.read(&files.shards()[place.shard], None)?.f_to_kind(wide)?;
        if bytes_of(&before)? == bytes_of(&memory)? {
            continue;
        }
        let value = place.conversion.stored(&place.stored.key, &memory)?.f_contiguous()?;
        let size = own.elt_size_in_bytes() as i64;
        let start = (place.stored.start as i64 - tensor.start as i64) / size;
        whole.f_narrow(0, start, value.numel() as i64)?.f_copy_(&value.f_view([-1])?)?;
    }
    let kept = whole.f_to_kind(own)?;
    // Bits are compared, for a zero has a sign.
    if bytes_of(&kept.f_to_kind(wide)?)? == bytes_of(&whole)? {
        return Ok((tensor.block_type, bytes_of(&kept)?));
    }
    Ok((BlockType::F32, bytes_of(&whole)?))
}
