//! What `config.json` says of a decoder, for all families in one form.

use serde_json::Value;

use super::families::FAMILIES;
use super::family::{Family, Flow, Names, NormKind, Positions, QkNorm, Qkv, Switch};
use super::per_layer::{ropes, windows};
use super::rope::Rope;
use crate::error::{Error, ErrorKind, Result};
use crate::models::activation::Activation;
use crate::models::fields::{flag, integer, integer_or, invalid, number};

/// The shape and the options of a decoder-only language model, read from a `config.json` of transformers.
///
/// Families: `bloom`, `cohere`, `falcon`, `gemma`, `gemma2`, `gemma3_text`, `gpt2`, `gpt_neox`, `gptj`, `granite`,
/// `llama`, `mistral`, `olmo2`, `opt`, `phi`, `phi3`, `qwen2`, `qwen3`, `smollm3`, `stablelm`, `starcoder2`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub(super) family: &'static Family,
    pub(super) names: Names,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    /// Width of embedding and head, where it is not that of the blocks.
    pub(super) embed_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
    /// How many positions have an embedding.
    pub(super) max_positions: i64,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    pub(super) positions: Positions,
    pub(super) ropes: Vec<Rope>,
    /// Per layer, which of `ropes` turns queries and keys; `None`: they are not turned.
    pub(super) layer_ropes: Vec<Option<usize>>,
    /// How many dimensions of a head are turned.
    pub(super) rotary_dim: i64,
    pub(super) flow: Flow,
    /// What is added to is the norm's output.
    pub(super) residual_from_norm: bool,
    pub(super) tied: bool,
    pub(super) qkv_bias: bool,
    pub(super) o_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) qk_norm: QkNorm,
    /// What embeddings are multiplied with.
    pub(super) embedding_scale: f64,
    /// What attention and MLP are multiplied with before they are added.
    pub(super) residual_scale: f64,
    /// What logits are multiplied with.
    pub(super) logit_scale: f64,
    /// Per layer, what scores are multiplied with.
    pub(super) attention_scales: Vec<f64>,
    pub(super) attention_cap: Option<f64>,
    pub(super) logit_cap: Option<f64>,
    /// Per layer, how many positions it sees; `None`: all.
    pub(super) windows: Vec<Option<i64>>,
    pub(super) embedding_dropout: f64,
    pub(super) attention_dropout: f64,
    pub(super) residual_dropout: [f64; 2],
    pub(super) initializer_range: f64,
    pub(super) eos: Vec<i64>,
    pub(super) pad: Option<i64>,
}

/// Settings that change the computation, and the one value of each that is implemented.
const FIXED: [(&str, Value); 6] = [
    ("quantization_config", Value::Null),
    ("use_bidirectional_attention", Value::Bool(false)),
    ("add_cross_attention", Value::Bool(false)),
    ("layer_norm_elementwise_affine", Value::Bool(true)),
    ("_remove_final_layer_norm", Value::Bool(false)),
    ("layerdrop", Value::Null),
];

impl DecoderConfig {
    /// Reads the parsed `config.json`.
    ///
    /// # Errors
    /// `Unsupported` for a `model_type` that is not a family above, or an option that changes the computation and is
    /// not implemented; `InvalidConfig` for a key that is missing or does not fit.
    pub fn from_value(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
            let known = Self::model_types().join(", ");
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("model_type is '{model_type}', expected one of {known}"),
            ));
        };
        refuse_unknown(config)?;
        let keys = &family.keys;
        let hidden_size = any(config, &["hidden_size", "n_embd", "n_embed"])?;
        let heads = any(config, &["num_attention_heads", "n_head"])?;
        let layers = any(config, &["num_hidden_layers", "n_layer"])?;
        let head_dim = integer_or(config, "head_dim", hidden_size / heads.max(1))?;
        let is = |switch: Switch| match switch {
            Switch::Is(known) => Ok(known),
            Switch::Key(key, default) => flag(config, key, default),
        };
        let optional = |(key, default): (&str, f64)| number(config, key, default);
        let gemma = family.norm == NormKind::RmsFromOne;
        let (act, key) = activation(config, family, gemma);
        let windows = windows(config, model_type, is(family.window)?, layers)?;
        let turned = matches!(family.positions, Positions::Rope { .. });
        let (ropes, layer_ropes) = match turned {
            true => ropes(config, model_type, keys.theta, &windows)?,
            false => (Vec::new(), vec![None; layers.max(0) as usize]),
        };
        let cap = |key: &str| -> Result<Option<f64>> {
            match config.get(key).filter(|v| gemma && model_type != "gemma" && !v.is_null()) {
                Some(_) => number(config, key, 0.).map(Some),
                None => Ok(None),
            }
        };
        let only = |family: &str, key: &str, default: f64| match model_type == family {
            true => number(config, key, default),
            false => Ok(default),
        };
        let attention_scale = match model_type {
            "granite" => number(config, "attention_multiplier", 1.)?,
            "gemma2" | "gemma3_text" => number(config, "query_pre_attn_scalar", 256.)?.powf(-0.5),
            "gpt2" if !flag(config, "scale_attn_weights", true)? => 1.,
            _ => (head_dim as f64).powf(-0.5),
        };
        let by_layer =
            model_type == "gpt2" && flag(config, "scale_attn_by_inverse_layer_idx", false)?;
        let scale = |layer: i64| attention_scale / if by_layer { (layer + 1) as f64 } else { 1. };
        let mut config = DecoderConfig {
            family,
            names: family.names,
            vocab_size: integer(config, "vocab_size")?,
            hidden_size,
            embed_size: integer_or(config, "word_embed_proj_dim", hidden_size)?,
            intermediate_size: match keys.intermediate {
                "intermediate_size" => integer(config, "intermediate_size")?,
                key => integer_or(config, key, 4 * hidden_size)?,
            },
            layers,
            heads,
            kv_heads: integer_or(config, keys.kv_heads, heads)?,
            head_dim,
            max_positions: match family.positions {
                Positions::Learned { .. } => {
                    any(config, &["max_position_embeddings", "n_positions"])?
                }
                _ => 0,
            },
            norm_eps: optional(keys.eps)?,
            activation: Activation::named(act, key)?,
            positions: family.positions,
            ropes,
            layer_ropes,
            rotary_dim: rotary_dim(config, family, head_dim)?,
            flow: family.flow,
            residual_from_norm: flag(config, "apply_residual_connection_post_layernorm", false)?,
            tied: flag(config, "tie_word_embeddings", family.tied)?,
            qkv_bias: is(family.qkv_bias)?,
            o_bias: is(family.o_bias)?,
            mlp_bias: is(family.mlp_bias)?,
            qk_norm: family.qk_norm,
            embedding_scale: match gemma {
                true => (hidden_size as f64).sqrt(),
                false => only("granite", "embedding_multiplier", 1.)?,
            },
            residual_scale: only("granite", "residual_multiplier", 1.)?,
            logit_scale: match model_type {
                "cohere" => number(config, "logit_scale", 0.0625)?,
                _ => 1. / only("granite", "logits_scaling", 1.)?,
            },
            attention_scales: (0..layers).map(scale).collect(),
            attention_cap: cap("attn_logit_softcapping")?,
            logit_cap: cap("final_logit_softcapping")?,
            windows,
            embedding_dropout: optional(keys.embedding_dropout)?,
            attention_dropout: optional(keys.attention_dropout)?,
            residual_dropout: [
                optional(keys.residual_dropout[0])?,
                optional(keys.residual_dropout[1])?,
            ],
            initializer_range: number(config, "initializer_range", 0.02)?,
            eos: tokens(config.get("eos_token_id"))?,
            pad: config.get("pad_token_id").and_then(Value::as_i64).filter(|id| *id >= 0),
        }
        .with_variants(config)?;
        if let Qkv::Groups = family.qkv {
            config.head_dim = hidden_size / heads.max(1);
        }
        config.check()
    }

    /// The options of single families that change how a block is put together.
    fn with_variants(mut self, config: &Value) -> Result<Self> {
        match self.family.model_type {
            "cohere" if flag(config, "use_qk_norm", false)? => {
                self.qk_norm = QkNorm::OwnHeads { listed: false };
            }
            "stablelm" => {
                if flag(config, "qk_layernorm", false)? {
                    self.qk_norm = QkNorm::OwnHeads { listed: true };
                }
                if flag(config, "use_parallel_residual", false)? {
                    self.flow = Flow::Parallel;
                    self.names.norms[2] = "";
                }
            }
            "phi" if flag(config, "qk_layernorm", false)? => self.qk_norm = QkNorm::Heads,
            "gpt_neox" if !flag(config, "use_parallel_residual", true)? => {
                self.flow = Flow::Sequential;
            }
            "opt" if !flag(config, "do_layer_norm_before", true)? => {
                self.flow = Flow::NormedSums;
                self.names.norms = ["", "self_attn_layer_norm", "", "final_layer_norm"];
                self.names.norm = "";
            }
            "falcon" => self.falcon(config)?,
            _ => (),
        }
        Ok(self)
    }

    fn falcon(&mut self, config: &Value) -> Result<()> {
        let new = flag(config, "new_decoder_architecture", false)?;
        self.kv_heads = match new || !flag(config, "multi_query", true)? {
            true if new => {
                let key = ["num_kv_heads", "n_head_kv"];
                let given = key.iter().find(|key| config.get(**key).is_some_and(|v| !v.is_null()));
                given.map_or(Ok(self.heads), |key| integer(config, key))?
            }
            true => self.heads,
            false => 1,
        };
        if flag(config, "alibi", false)? {
            self.positions = Positions::Alibi { falcon: true };
            self.ropes.clear();
            self.layer_ropes.fill(None);
        } else {
            // transformers has it with the bias alone.
            self.attention_dropout = 0.;
        }
        let parallel = flag(config, "parallel_attn", true)?;
        if new && !parallel {
            return unsupported("'new_decoder_architecture' without 'parallel_attn'");
        }
        if parallel {
            self.flow = Flow::Parallel;
            self.residual_dropout[0] = 0.;
            if self.residual_dropout[1] != 0. {
                return unsupported("'hidden_dropout' with 'parallel_attn'");
            }
            let norms = integer_or(config, "num_ln_in_parallel_attn", if new { 2 } else { 1 })?;
            self.names.norms = match (new, norms) {
                (true, 2) => ["ln_attn", "", "ln_mlp", ""],
                (_, 1) => ["input_layernorm", "", "", ""],
                _ => return unsupported("this 'num_ln_in_parallel_attn'"),
            };
        }
        Ok(())
    }

    pub(in crate::models) fn model_types() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.model_type).collect()
    }

    /// The family, such as `llama`.
    pub fn model_type(&self) -> &str {
        self.family.model_type
    }

    /// Number of tokens that the model knows.
    pub fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    /// Width of what [`hidden_states`](super::Decoder::hidden_states) gives: that of the head.
    pub fn output_size(&self) -> i64 {
        self.embed_size
    }

    /// The tokens that end a text (`eos_token_id`).
    pub fn eos_token_ids(&self) -> &[i64] {
        &self.eos
    }

    /// `pad_token_id`, if there is one.
    pub fn pad_token_id(&self) -> Option<i64> {
        self.pad
    }

    fn check(self) -> Result<Self> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("word_embed_proj_dim", self.embed_size),
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
        let turned = matches!(self.positions, Positions::Rope { .. });
        if turned && (self.rotary_dim % 2 != 0 || self.rotary_dim <= 0) {
            return invalid(format!(
                "{} dimensions of a head are turned, expected an even number above 0",
                self.rotary_dim
            ));
        }
        Ok(self)
    }
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, format!("{what} is not implemented")))
}

fn refuse_unknown(config: &Value) -> Result<()> {
    for (key, expected) in FIXED {
        let off = |value: &Value| value.is_null() || *value == false || value.as_f64() == Some(0.);
        match config.get(key) {
            Some(value) if *value != expected && !(expected != true && off(value)) => {
                return unsupported(&format!("'{key}': {value}"));
            }
            _ => (),
        }
    }
    match integer_or(config, "pretraining_tp", 1)? {
        1 => Ok(()),
        // Bloom's changes nothing unless its slow path is asked for.
        _ if !flag(config, "slow_but_exact", true)? => Ok(()),
        ways => unsupported(&format!("'pretraining_tp': {ways}")),
    }
}

/// The first of several keys of the same meaning.
fn any(config: &Value, keys: &[&str]) -> Result<i64> {
    let key = keys.iter().find(|key| config.get(**key).is_some_and(|value| !value.is_null()));
    integer(config, key.unwrap_or(&keys[0]))
}

/// The name of the activation and the key that holds it.
fn activation<'a>(config: &'a Value, family: &Family, gemma: bool) -> (&'a str, &'static str) {
    let (key, default) = family.keys.activation;
    // Every Gemma may have either key.
    let keys = if gemma { ["hidden_activation", "hidden_act"] } else { [key, key] };
    let given = |key: &'static str| Some((config.get(key)?.as_str()?, key));
    let (name, key) = keys.into_iter().find_map(given).unwrap_or((default, key));
    match name {
        // The first Gemma files say `gelu` and mean its approximation; transformers reads them so.
        "gelu" if gemma => ("gelu_pytorch_tanh", key),
        name => (name, key),
    }
}

fn rotary_dim(config: &Value, family: &Family, head_dim: i64) -> Result<i64> {
    if family.model_type == "gptj" {
        return integer(config, "rotary_dim");
    }
    let (key, default) = family.keys.rotary;
    let nested = config.get("rope_parameters").and_then(|rope| rope.get("partial_rotary_factor"));
    let part = match nested.and_then(Value::as_f64) {
        Some(part) => part,
        None => number(config, key, default)?,
    };
    Ok((head_dim as f64 * part) as i64)
}

/// One token, several or none.
fn tokens(value: Option<&Value>) -> Result<Vec<i64>> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list.iter().filter_map(Value::as_i64).collect()),
        Some(value) => match value.as_i64() {
            Some(token) => Ok(vec![token]),
            None => invalid(format!("'eos_token_id' is {value}, expected an integer or a list")),
        },
    }
}
