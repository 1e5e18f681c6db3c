//! What `config.json` says of a decoder, for all families in one form.

use serde_json::Value;

use super::activation::Activation;
use super::fields::{flag, integer, integer_or, invalid, number};
use super::rope::Rope;
use crate::error::{Error, ErrorKind, Result};

/// The shape and the options of a decoder-only language model, read from a `config.json` of transformers.
///
/// Families: `llama` (llama-3 and linear rope scaling), `mistral` (sliding window), `qwen2`, `qwen3`, `gemma`, `gemma2`
/// (soft caps, sliding window), `gemma3_text`, `granite`, `olmo2`, `phi3`, `smollm3`.
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
    pub(super) ropes: Vec<Rope>,
    /// Per layer, which of `ropes` turns queries and keys; `None`: they are not turned.
    pub(super) layer_ropes: Vec<Option<usize>>,
    /// How many dimensions of a head are turned.
    pub(super) rotary_dim: i64,
    pub(super) tied: bool,
    pub(super) qkv_bias: bool,
    pub(super) o_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) qk_norm: QkNorm,
    /// Queries, keys and values come from one matrix, gate and up from another.
    pub(super) fused: bool,
    /// Norm weights count from 1: y · (1 + w).
    pub(super) zero_centred: bool,
    pub(super) norms: NormPlaces,
    /// What embeddings are multiplied with.
    pub(super) embedding_scale: f64,
    /// What attention and MLP are multiplied with before they are added.
    pub(super) residual_scale: f64,
    /// What logits are divided by.
    pub(super) logit_divisor: f64,
    /// What scores are multiplied with.
    pub(super) attention_scale: f64,
    pub(super) attention_cap: Option<f64>,
    pub(super) logit_cap: Option<f64>,
    /// Per layer, how many positions it sees; `None`: all.
    pub(super) windows: Vec<Option<i64>>,
    pub(super) attention_dropout: f64,
    pub(super) initializer_range: f64,
}

/// Whether queries and keys are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head by itself.
    Heads,
    /// All heads together.
    Whole,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormPlaces {
    /// Before attention and MLP.
    Before,
    /// Behind both.
    After,
    Both,
}

const FAMILIES: [&str; 11] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

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
        if flag(config, "use_bidirectional_attention", false)? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "'use_bidirectional_attention' is true",
            ));
        }
        let later_gemma = ["gemma2", "gemma3_text"].contains(&model_type);
        let granite = |key: &str| -> Result<f64> {
            if model_type == "granite" {
                number(config, key, 1.)
            } else {
                Ok(1.)
            }
        };
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
        let attention_scale = match model_type {
            "granite" => granite("attention_multiplier")?,
            _ if later_gemma => number(config, "query_pre_attn_scalar", 256.)?.powf(-0.5),
            _ => (head_dim as f64).powf(-0.5),
        };
        let windows = windows(config, model_type, layers)?;
        let (ropes, layer_ropes) = ropes(config, model_type, &windows)?;
        for key in ["resid_pdrop", "embd_pdrop"] {
            if number(config, key, 0.)? != 0. {
                return Err(Error::new(ErrorKind::Unsupported, format!("'{key}' is not 0")));
            }
        }
        let partial = config.get("rope_parameters").unwrap_or(config);
        let partial = number(partial, "partial_rotary_factor", 1.)?;
        let cap = |key: &str| -> Result<Option<f64>> {
            match config.get(key).filter(|v| later_gemma && !v.is_null()) {
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
            ropes,
            layer_ropes,
            rotary_dim: (head_dim as f64 * partial) as i64,
            tied: flag(config, "tie_word_embeddings", gemma || model_type == "smollm3")?,
            qkv_bias: model_type == "qwen2" || attention_bias,
            o_bias: model_type != "qwen2" && attention_bias,
            mlp_bias: flag(config, "mlp_bias", false)?,
            qk_norm: match model_type {
                "qwen3" | "gemma3_text" => QkNorm::Heads,
                "olmo2" => QkNorm::Whole,
                _ => QkNorm::None,
            },
            fused: model_type == "phi3",
            zero_centred: gemma,
            norms: match model_type {
                "olmo2" => NormPlaces::After,
                _ if later_gemma => NormPlaces::Both,
                _ => NormPlaces::Before,
            },
            embedding_scale: match gemma {
                true => (hidden_size as f64).sqrt(),
                false => granite("embedding_multiplier")?,
            },
            residual_scale: granite("residual_multiplier")?,
            logit_divisor: granite("logits_scaling")?,
            attention_scale,
            attention_cap: cap("attn_logit_softcapping")?,
            logit_cap: cap("final_logit_softcapping")?,
            windows,
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
        if self.rotary_dim % 2 != 0 || self.rotary_dim <= 0 {
            return invalid(format!(
                "{} dimensions of a head are turned, expected an even number above 0",
                self.rotary_dim
            ));
        }
        Ok(self)
    }
}

/// Which layers see a window only: by `layer_types` where it stands, else by the family's habit.
fn windows(config: &Value, model_type: &str, layers: i64) -> Result<Vec<Option<i64>>> {
    let used = match model_type {
        "mistral" | "gemma2" | "gemma3_text" | "phi3" => true,
        "qwen2" | "qwen3" | "smollm3" => flag(config, "use_sliding_window", false)?,
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
                None if model_type == "gemma3_text" => {
                    (layer + 1) % integer_or(config, "sliding_window_pattern", 6)? != 0
                }
                None if model_type == "smollm3" => !turned(config, layer)?,
                None if model_type.starts_with("qwen") => layer >= from,
                None => true,
            };
            Ok(window.filter(|_| slides))
        })
        .collect()
}

/// SmolLM3 turns queries and keys in some layers only.
fn turned(config: &Value, layer: i64) -> Result<bool> {
    match config.get("no_rope_layers").and_then(Value::as_array) {
        // Despite the name, 1 stands for layers with rope.
        Some(layers) => Ok(layers.get(layer as usize).and_then(Value::as_i64) != Some(0)),
        None => Ok((layer + 1) % integer_or(config, "no_rope_layer_interval", 4)?.max(1) != 0),
    }
}

/// The ropes of a model and which layer uses which.
fn ropes(
    config: &Value,
    model_type: &str,
    windows: &[Option<i64>],
) -> Result<(Vec<Rope>, Vec<Option<usize>>)> {
    if model_type != "gemma3_text" {
        let layers = (0..windows.len() as i64).map(|layer| {
            let used = model_type != "smollm3" || turned(config, layer)?;
            Ok(used.then_some(0))
        });
        return Ok((vec![Rope::from_config(config)?], layers.collect::<Result<_>>()?));
    }
    // Layers with a window have a rope of their own.
    let nested = |key: &str| config.get("rope_parameters").and_then(|rope| rope.get(key));
    let (full, sliding) = match (nested("full_attention"), nested("sliding_attention")) {
        (Some(full), Some(sliding)) => (
            Rope::from_config(&serde_json::json!({"rope_parameters": full}))?,
            Rope::from_config(&serde_json::json!({"rope_parameters": sliding}))?,
        ),
        _ => {
            let local = number(config, "rope_local_base_freq", 10_000.)?;
            let full = number(config, "rope_theta", 1_000_000.)?;
            let scaling = config.get("rope_scaling").cloned().unwrap_or(Value::Null);
            let full = serde_json::json!({"rope_theta": full, "rope_scaling": scaling});
            (
                Rope::from_config(&full)?,
                Rope::from_config(&serde_json::json!({"rope_theta": local}))?,
            )
        }
    };
    let layers = windows.iter().map(|window| Some(usize::from(window.is_some())));
    Ok((vec![full, sliding], layers.collect()))
}
