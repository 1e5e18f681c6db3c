//! The work that is measured: models, batches, model directories.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::pretrained;
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind};

pub const THREADS: i32 = 2;

/// A decoder with random weights.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub hidden: i64,
    pub inner: i64,
    pub layers: i64,
    pub heads: i64,
    pub kv_heads: i64,
    pub vocabulary: i64,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub name: &'static str,
    pub shape: Shape,
    pub kind: &'static str,
    pub batch: i64,
    pub length: i64,
    pub device: &'static str,
    pub generates: bool,
}

/// 56 M parameters.
pub const LLAMA_56M: Shape =
    Shape { hidden: 512, inner: 1408, layers: 8, heads: 8, kv_heads: 4, vocabulary: 32_000 };

pub const LONG_VOCABULARY: Shape =
    Shape { hidden: 256, inner: 704, layers: 4, heads: 4, kv_heads: 2, vocabulary: 128_256 };

/// As small as the quickstart's.
pub const SMALL: Shape =
    Shape { hidden: 64, inner: 256, layers: 6, heads: 4, kv_heads: 4, vocabulary: 1_000 };

/// That of Llama-3.2-3B.
pub const LLAMA_3B: Shape =
    Shape { hidden: 3072, inner: 8192, layers: 28, heads: 24, kv_heads: 8, vocabulary: 128_256 };

impl Shape {
    pub fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": self.vocabulary,
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "eos_token_id": null, "bos_token_id": null,
            "attention_bias": false, "mlp_bias": false,
        })
    }

    /// The sizes `(output, input)` of all frozen matrices that a token passes through.
    pub fn matrices(&self) -> Vec<(i64, i64)> {
        let narrow = self.hidden / self.heads * self.kv_heads;
        let (size, inner) = (self.hidden, self.inner);
        let block = [
            (size, size),
            (narrow, size),
            (narrow, size),
            (size, size),
            (inner, size),
            (inner, size),
            (size, inner),
        ];
        let blocks = block.into_iter().cycle().take(block.len() * self.layers as usize);
        blocks.chain([(self.vocabulary, size)]).collect()
    }
}

impl Work {
    /// The model's directory, made if it is not there.
    pub fn directory(&self) -> Result<PathBuf> {
        let Shape { hidden, layers, vocabulary, .. } = self.shape;
        let name = format!("llama-{hidden}-{layers}-{vocabulary}-{}", self.kind);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(name);
        if !dir.join("model.safetensors").exists() {
            eprintln!("making a model in '{}'", dir.display());
            let mut config = self.shape.config();
            config["dtype"] = self.kind.into();
            tch::manual_seed(0);
            let mut vs = VarStore::new(Device::Cpu);
            Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
            if kind(self.kind)? == Kind::BFloat16 {
                vs.bfloat16();
            }
            pretrained::save(&vs, &dir, &format!("{config:#}"))?;
        }
        Ok(dir)
    }
}

pub fn kind(name: &str) -> Result<Kind> {
    match name {
        "float32" => Ok(Kind::Float),
        "bfloat16" => Ok(Kind::BFloat16),
        other => anyhow::bail!("unknown kind {other}"),
    }
}
