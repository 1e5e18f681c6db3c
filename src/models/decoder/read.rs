//! A decoder's configuration from its `config.json`.

use serde_json::Value;

use super::config::DecoderConfig;
use super::families::FAMILIES;
use super::family::{Factor, Family};
use super::form::{Positions, QkvForm};
use super::per_layer::windows;
use super::ropes::ropes;
use crate::error::Result;
use crate::models::config::{
    declared, flag, integer_or, layers, not_implemented, number, optional_integer, optional_number,
    size, size_or, Declared, ModelConfig,
};
use crate::models::generation_config::GenerationConfig;
use crate::models::nn::Activation;
use crate::pretrained::Head;

const HEADS: &[Head] = &[Head::None, Head::LanguageModel, Head::SequenceClassification];

/// Settings that change the computation, and the one value of each that is implemented.
const FIXED: [(&str, Value); 5] = [
    ("use_bidirectional_attention", Value::Bool(false)),
    ("add_cross_attention", Value::Bool(false)),
    ("layer_norm_elementwise_affine", Value::Bool(true)),
    ("_remove_final_layer_norm", Value::Bool(false)),
    ("layerdrop", Value::Null),
];

impl ModelConfig for DecoderConfig {
    fn model_types() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.model_type).collect()
    }

    fn from_value(config: &Value) -> Result<Self> {
        let declared = Declared::read(config, &Self::model_types(), HEADS, Head::LanguageModel)?;
        let is_read = |family: &&Family| family.model_type == config["model_type"];
        let family = FAMILIES.iter().find(is_read).unwrap_or(&FAMILIES[0]);
        refuse_unknown(config)?;
        let keys = &family.keys;
        let hidden_size = size(config, first(config, &["hidden_size", "n_embd", "n_embed"]))?;
        let heads = size(config, first(config, &["num_attention_heads", "n_head"]))?;
        let layers = layers(config, first(config, &["num_hidden_layers", "n_layer"]))?;
        let head_dim = match family.qkv {
            QkvForm::Groups => hidden_size / heads,
            _ => size_or(config, "head_dim", hidden_size / heads)?,
        };
        let optional = |(key, default): (&str, f64)| number(config, key, default);
        let windows = windows(config, family, layers)?;
        let max_positions = match family.positions {
            Positions::Learned { .. } => {
                size(config, first(config, &["max_position_embeddings", "n_positions"]))?
            }
            _ => integer_or(config, "max_position_embeddings", keys.max_positions)?,
        };
        let (names, default) = keys.activation;
        let given = |key: &'static str| Some((config.get(key)?.as_str()?, key));
        let (activation, key) =
            names.iter().copied().find_map(given).unwrap_or((default, "activation"));
        let attention_scale = family.attention_scale.read(config, hidden_size, head_dim)?;
        let mut read = DecoderConfig {
            names: family.names,
            qkv: family.qkv,
            gated: family.gated,
            transposed: family.transposed,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            embed_size: size_or(config, "word_embed_proj_dim", hidden_size)?,
            intermediate_size: match keys.intermediate {
                "intermediate_size" => size(config, "intermediate_size")?,
                key => size_or(config, key, 4 * hidden_size)?,
            },
            layers,
            heads,
            kv_heads: size_or(config, keys.kv_heads, heads)?,
            head_dim,
            max_positions,
            norm: family.norm,
            norm_eps: optional(keys.eps)?,
            activation: Activation::named(activation, key)?,
            positions: family.positions,
            ropes: Vec::new(),
            layer_ropes: vec![None; layers as usize],
            kept_places: None,
            flow: family.flow,
            tied: flag(config, "tie_word_embeddings", family.tied)?,
            qkv_bias: family.qkv_bias.read(config)?,
            o_bias: family.o_bias.read(config)?,
            mlp_bias: family.mlp_bias.read(config)?,
            head_bias: family.head_bias,
            qk_norm: family.qk_norm,
            clip_qkv: optional_number(config, keys.clip_qkv)?,
            embedding_scale: family.embedding_scale.read(config, hidden_size, head_dim)?,
            scales_tokens: family.embedding_scale == Factor::RootOfWidth,
            residual_scale: family.residual_scale.read(config, hidden_size, head_dim)?,
            logit_scale: family.logit_scale.read(config, hidden_size, head_dim)?,
            attention_scales: vec![attention_scale; layers as usize],
            attention_cap: cap(config, keys.caps[0])?,
            logit_cap: cap(config, keys.caps[1])?,
            windows,
            embedding_dropout: optional(keys.embedding_dropout)?,
            attention_dropout: optional(keys.attention_dropout)?,
            residual_dropout: [
                optional(keys.residual_dropout[0])?,
                optional(keys.residual_dropout[1])?,
            ],
            initializer_range: number(config, "initializer_range", 0.02)?,
            pad_token_id: optional_integer(config, "pad_token_id")?.filter(|id| *id >= 0),
            generation: GenerationConfig::from_value(config, None, None)?,
            declared,
        };
        (family.variant)(&mut read, config)?;
        let mut read = read.check()?;
        if let Positions::Rope { .. } = read.positions {
            ropes(&mut read, config, family)?;
        }
        Ok(read)
    }

    declared!();

    fn label_modules(&self) -> Vec<String> {
        vec!["score".into()]
    }

    fn with_generation(mut self, generation: &Value) -> Result<Self> {
        self.generation = self.generation.overridden(generation)?;
        Ok(self)
    }
}

fn refuse_unknown(config: &Value) -> Result<()> {
    for (key, expected) in FIXED {
        let off = |value: &Value| value.is_null() || *value == false || value.as_f64() == Some(0.);
        match config.get(key) {
            Some(value) if *value != expected && !(expected != true && off(value)) => {
                return not_implemented(&format!("'{key}': {value}"));
            }
            _ => (),
        }
    }
    Ok(())
}

/// Null stands for none, unlike a key that is not there.
fn cap(config: &Value, (key, default): (&str, Option<f64>)) -> Result<Option<f64>> {
    match config.get(key) {
        None => Ok(default),
        Some(_) => optional_number(config, key),
    }
}

/// The first of several keys of the same meaning that is there.
fn first(config: &Value, keys: &[&'static str]) -> &'static str {
    let key = keys.iter().find(|key| config.get(**key).is_some_and(|value| !value.is_null()));
    key.unwrap_or(&keys[0])
}
