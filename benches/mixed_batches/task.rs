//! The models that both sides make.

use anyhow::{bail, Result};
use serde_json::{json, Value};
use tch::Kind;

/// The tokens that so many rows get each: the first by the prefill, each of the others by a step of decoding. Steps of few
/// rows are short, so that more of them are made; on a GPU all take as long.
pub fn new_tokens(rows: i64) -> i64 {
    let steps = if crate::has("cuda") { 12 } else { (256 / rows).clamp(4, 32) };
    1 + steps
}

/// The sizes of a llama.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub name: &'static str,
    pub layers: i64,
    pub hidden: i64,
    inner: i64,
    heads: i64,
    kv_heads: i64,
    pub vocabulary: i64,
    tied: bool,
}

pub const SMALL: Shape = Shape {
    name: "4 layers of 512",
    layers: 4,
    hidden: 512,
    inner: 1408,
    heads: 8,
    kv_heads: 4,
    vocabulary: 4096,
    tied: false,
};

/// That of SmolLM2-135M.
pub const DEEP: Shape = Shape {
    name: "30 layers of 576 (SmolLM2-135M)",
    layers: 30,
    hidden: 576,
    inner: 1536,
    heads: 9,
    kv_heads: 3,
    vocabulary: 49152,
    tied: true,
};

pub const LLAMA_3B: Shape = Shape {
    name: "28 layers of 3,072 (Llama-3.2-3B)",
    layers: 28,
    hidden: 3072,
    inner: 8192,
    heads: 24,
    kv_heads: 8,
    vocabulary: 128_256,
    tied: true,
};

impl Shape {
    pub fn config(&self) -> Value {
        json!({
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048, "tie_word_embeddings": self.tied,
        })
    }

    /// The weights of an LN adapter.
    pub fn weights(&self) -> i64 {
        self.hidden * (2 * self.layers + 1)
    }
}

/// The targets of LoRA, as PEFT takes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Targets {
    /// PEFT's own for a llama: queries and values.
    Default,
    AllLinear,
}

impl Targets {
    pub fn name(self) -> &'static str {
        match self {
            Targets::Default => "q, v",
            Targets::AllLinear => "all-linear",
        }
    }

    pub fn to_value(self) -> Value {
        match self {
            Targets::Default => json!(["q_proj", "v_proj"]),
            Targets::AllLinear => json!("all-linear"),
        }
    }
}

/// As torch calls it.
pub fn torch_name(kind: Kind) -> Result<&'static str> {
    Ok(match kind {
        Kind::Float => "float32",
        Kind::BFloat16 => "bfloat16",
        other => bail!("{other:?} is not compared"),
    })
}
