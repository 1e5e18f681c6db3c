//! The names of a GGUF file's tensors in memory, and their conversions.

use super::architecture::Architecture;
use super::conversion::Conversion;
use super::settings::Config;
use crate::error::{refuse, Result};
use crate::names::nearest::listed;
use crate::storage::gguf::GgufFile;
use crate::storage::stored::Stored;

/// Tensors that say something about the rope, which the configuration has, or that the model computes.
const COMPUTED: [&str; 4] =
    ["rope_freqs", "rope_factors_long", "rope_factors_short", "blk.attn_rot_embd"];

/// Each tensor with its name in memory and its conversion.
pub(super) fn named(
    architecture: &Architecture,
    config: &Config,
    file: &GgufFile,
    stored: &[Stored],
) -> Result<Vec<(String, Stored, Conversion)>> {
    let mut named = Vec::new();
    let mut unknown = Vec::new();
    for tensor in stored {
        let key = tensor.key.as_str();
        let (stem, last) = match key.rsplit_once('.') {
            Some((stem, last @ ("weight" | "bias"))) => (stem, last),
            _ => (key, ""),
        };
        let (stem, block) = stem_of(stem);
        if COMPUTED.contains(&stem.as_str()) {
            named.push((
                format!("{key}.rotary_emb.inv_freq"),
                tensor.clone(),
                Conversion::AsStored,
            ));
            continue;
        }
        let Some(name) = architecture.name_of(&stem).filter(|_| !last.is_empty()) else {
            unknown.push(key.to_owned());
            continue;
        };
        let conversion = conversion(architecture, config, &stem, &format!("{stem}.{last}"));
        let name = format!("{}.{last}", name.replace("{}", block));
        let name =
            if architecture.name == "falcon" && file.find("blk.0.attn_norm_2.weight").is_some() {
                // With a norm of its own for attention, the first one is that of the MLP.
                name.replace(".input_layernorm.", ".ln_mlp.")
            } else {
                name
            };
        named.extend(
            parts(&name, tensor, file)?.into_iter().map(|(name, part)| (name, part, conversion)),
        );
    }
    if !unknown.is_empty() {
        refuse!(
            UnexpectedKeys,
            "'{}' holds {} tensors that the architecture '{}' has no place for: {}",
            file.path().display(),
            unknown.len(),
            architecture.name,
            listed(&unknown)
        );
    }
    Ok(named)
}

impl Architecture {
    /// The name in memory of a module, with `{}` for the number of its block.
    fn name_of(&self, stem: &str) -> Option<&'static str> {
        let names = self.names.iter().copied().flatten();
        names.into_iter().find(|(known, _)| *known == stem).map(|(_, name)| *name)
    }
}

/// A module without the number of its block, and the number.
fn stem_of(stem: &str) -> (String, &str) {
    let Some((number, module)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    else {
        return (stem.to_owned(), "");
    };
    // A number with a sign or zeros before it is another name, and would hide a tensor.
    match number.parse::<u32>() {
        Ok(block) if block.to_string() == number => (format!("blk.{module}"), number),
        _ => (stem.to_owned(), ""),
    }
}

fn conversion(architecture: &Architecture, config: &Config, stem: &str, name: &str) -> Conversion {
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    match stem {
        "blk.attn_q" if architecture.paired => Conversion::Paired { heads },
        "blk.attn_k" if architecture.paired => Conversion::Paired { heads: kv_heads },
        "blk.attn_qkv" if architecture.grouped => {
            Conversion::Grouped { kv_heads, queries: heads / kv_heads.max(1) }
        }
        "blk.attn_qkv" | "blk.attn_output" | "blk.ffn_up" | "blk.ffn_down"
            if architecture.transposed && name.ends_with(".weight") =>
        {
            Conversion::Transposed
        }
        _ if architecture.plus_one && name.ends_with("norm.weight") => Conversion::PlusOne,
        _ => Conversion::AsStored,
    }
}

/// The tensors that one of the file is in memory: `a+b+c` are equal parts of its rows, `norms.*` one per row.
fn parts(name: &str, tensor: &Stored, file: &GgufFile) -> Result<Vec<(String, Stored)>> {
    if let Some((before, after)) = name.split_once('*') {
        let rows = tensor.shape.first().copied().unwrap_or(0).max(1);
        let parts = tensor.parts(rows as usize, file.path())?.into_iter().enumerate();
        let row = |(row, mut part): (usize, Stored)| {
            part.shape.remove(0);
            (format!("{before}{row}{after}"), part)
        };
        return Ok(parts.map(row).collect());
    }
    let (module, last) = name.rsplit_once('.').unwrap_or((name, ""));
    let (above, modules) = module.rsplit_once('.').unwrap_or(("", module));
    if !modules.contains('+') {
        return Ok(vec![(name.to_owned(), tensor.clone())]);
    }
    let modules: Vec<&str> = modules.split('+').collect();
    let parts = tensor.parts(modules.len(), file.path())?;
    let named = |module: &&str| format!("{above}.{module}.{last}");
    Ok(modules.iter().map(named).zip(parts).collect())
}
