//! What `config.json` says of a decoder, for all families in one form.

use serde_json::Value;

use super::activation::Activation;
use super::rope::Rope;
use crate::error::{Error, ErrorKind, Result};

/// The shape and the options of a decoder-only language model, read from a `config.json` of transformers.
///
/// Families: `llama` (llama-3 and linear rope scaling), `mistral` (sliding window), `qwen2`, `qwen3`, `gemma`, `gemma2`
/// (soft caps, sliding window).
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub(super) model_type: String,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    pub(super) rope: Rope,
    pub(super) tied: bool,
    pub(super) qkv_bias: bool,
    pub(super) o_bias: bool,
    pub(super) mlp_bias: bool,
    /// Norms of queries and keys, per head.
    pub(super) qk_norm: bool,
    /// Norm weights count from 1: y · (1 + w).
    pub(super) zero_centred: bool,
    /// Norms before and after attention and MLP.
    pub(super) sandwich: bool,
    /// Embeddings are multiplied with √hidden_size.
    pub(super) scaled_embeddings: bool,
    /// What scores are multiplied with.
    pub(super) attention_scale: f64,
    pub(super) attention_cap: Option<f64>,
    pub(super) logit_cap: Option<f64>,
    /// Per layer, how many positions it sees; `None`: all.
    pub(super) windows: Vec<Option<i64>>,
    pub(super) attention_dropout: f64,
    pub(super) initializer_range: f64,
}

const FAMILIES: [&str; 6] = ["gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"];

impl DecoderConfig {
    /// Reads the parsed `config.json`.
    ///
    /// # Errors
    /// `Unsupported` for a `model_type` that is not a family above, or an option that changes the computation and is
    /// not implemented; `InvalidConfig` for a key that is missing or does not fit.
    pub fn from_value(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if !FAMILIES.contains(&model_type) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("model_type is '{model_type}', expected one of {}", FAMILIES.join(", ")),
            ));
        }
        if config.get("quantization_config").is_some_and(|v| !v.is_null()) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "'quantization_config' is set: load a checkpoint that is not quantised",
            ));
        }
        if integer_or(config, "pretraining_tp", 1)? != 1 {
            return Err(Error::new(ErrorKind::Unsupported, "'pretraining_tp' is not 1"));
        }
        let gemma = model_type.starts_with("gemma");
        let gemma2 = model_type == "gemma2";
        let heads = integer(config, "num_attention_heads")?;
        let hidden_size = integer(config, "hidden_size")?;
        let head_dim = integer_or(config, "head_dim", hidden_size / heads.max(1))?;
        let layers = integer(config, "num_hidden_layers")?;
        let act = ["hidden_activation", "hidden_act"];
        let act = act
            .iter()
            .filter(|key| gemma || **key == "hidden_act")
            .find_map(|key| config.get(key).and_then(Value::as_str).map(|name| (name, *key)));
        let (act, key) =
            act.unwrap_or((if gemma { "gelu_pytorch_tanh" } else { "silu" }, "hidden_act"));
        // The first Gemma files say `gelu` and mean its approximation; transformers reads them so.
        let act = if gemma && act == "gelu" { "gelu_pytorch_tanh" } else { act };
        let attention_bias = flag(config, "attention_bias", false)?;
        let query_scale = match gemma2 {
            true => number(config, "query_pre_attn_scalar", 256.)?,
            false => head_dim as f64,
        };
        let cap = |key: &str| -> Result<Option<f64>> {
            match config.get(key).filter(|v| gemma2 && !v.is_null()) {
                Some(_) => number(config, key, 0.).map(Some),
                None => Ok(None),
            }
        };
        let config = DecoderConfig {
            model_type: model_type.to_owned(),
            vocab_size: integer(config, "vocab_size")?,
            hidden_size,
            intermediate_size: integer(config, "intermediate_size")?,
            layers,
            heads,
            kv_heads: integer_or(config, "num_key_value_heads", heads)?,
            head_dim,
            norm_eps: number(config, "rms_norm_eps", 1e-6)?,
            activation: Activation::named(act, key)?,
            rope: Rope::from_config(config)?,
            tied: flag(config, "tie_word_embeddings", gemma)?,
            qkv_bias: model_type == "qwen2" || attention_bias,
            o_bias: model_type != "qwen2" && attention_bias,
            mlp_bias: flag(config, "mlp_bias", false)?,
            qk_norm: model_type == "qwen3",
            zero_centred: gemma,
            sandwich: gemma2,
            scaled_embeddings: gemma,
            attention_scale: query_scale.powf(-0.5),
            attention_cap: cap("attn_logit_softcapping")?,
            logit_cap: cap("final_logit_softcapping")?,
            windows: windows(config, model_type, layers)?,
            attention_dropout: number(config, "attention_dropout", 0.)?,
            initializer_range: number(config, "initializer_range", 0.02)?,
        };
        config.check()
    }

    /// The family, such as `llama`.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    fn check(self) -> Result<Self> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| *size <= 0) {
            return invalid(format!("'{name}' is {size}, expected a positive number"));
        }
        if self.heads % self.kv_heads != 0 {
            return invalid(format!(
                "'num_key_value_heads' ({}) does not divide 'num_attention_heads' ({})",
                self.kv_heads, self.heads
            ));
        }
        if self.head_dim % 2 != 0 {
            return invalid(format!("'head_dim' is {}, expected an even number", self.head_dim));
        }
        Ok(self)
    }
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

fn integer(config: &Value, key: &str) -> Result<i64> {
    match config.get(key).and_then(Value::as_i64) {
        Some(value) => Ok(value),
        None => invalid(format!("'{key}' is missing, or not an integer")),
    }
}

fn integer_or(config: &Value, key: &str, default: i64) -> Result<i64> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(_) => integer(config, key),
    }
}

fn number(config: &Value, key: &str, default: f64) -> Result<f64> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(number),
            None => invalid(format!("'{key}' is {value}, expected a number")),
        },
    }
}

fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => invalid(format!("'{key}' is {other}, expected true or false")),
    }
}

/// Which layers see a window only: by `layer_types` where it stands, else by the family's habit.
fn windows(config: &Value, model_type: &str, layers: i64) -> Result<Vec<Option<i64>>> {
    let used = match model_type {
        "mistral" | "gemma2" => true,
        "qwen2" | "qwen3" => flag(config, "use_sliding_window", false)?,
        _ => false,
    };
    let window = match config.get("sliding_window") {
        Some(value) if used && !value.is_null() => Some(integer(config, "sliding_window")?),
        _ => None,
    };
    let types = config.get("layer_types").and_then(Value::as_array);
    let from = integer_or(config, "max_window_layers", 28)?;
    (0..layers)
        .map(|layer| {
            let slides = match types.and_then(|types| types.get(layer as usize)).and_then(Value::as_str) {
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                Some(other) => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("'layer_types' holds '{other}', expected full_attention or sliding_attention"),
                    ));
                }
                None if model_type == "gemma2" => layer % 2 == 0,
                None if model_type.starts_with("qwen") => layer >= from,
                None => true,
            };
            Ok(window.filter(|_| slides))
        })
        .collect()
}
