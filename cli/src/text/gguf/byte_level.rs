//! Merges of bytes (`gpt2`): the tokenizer of Llama 3, Qwen, SmolLM and most others.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::splits::Split;
use super::vocabulary::Vocabulary;

/// Texts are taken as they are, as llama.cpp does it, also where the original model normalises them to NFC.
pub fn parts(words: &Vocabulary) -> Result<Value> {
    let split = Split::named(words.pre.as_deref())?;
    let pairs = words.pairs().context("there are no 'tokenizer.ggml.merges'")??;
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": split.pre_tokenizer(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignore_merges, "vocab": words.ids(), "merges": pairs,
        },
    }))
}

/// A text begins with the token for that, if the file does not say.
pub fn adds_bos(words: &Vocabulary) -> bool {
    Split::named(words.pre.as_deref()).is_ok_and(|split| split.add_bos)
}
