//! The configuration of an encoder-decoder, for all families in one form.

use serde_json::Value;

use crate::error::{refuse, Result};
use crate::models::config::{
    declared, flag, layers as read_layers, layers_or, number, size, size_or, Declared, ModelConfig,
};
use crate::models::generation_config::{optional, GenerationConfig};
use crate::models::nn::Activation;
use crate::pretrained::Head;

/// The shape and the options of an encoder-decoder language model, read from a `config.json` of transformers.
///
/// Families: `t5` (1.0 and 1.1), `mt5`, `bart`.
#[derive(Debug, Clone, PartialEq)]
pub struct Seq2SeqConfig {
    pub(super) declared: Declared,
    pub(super) family: Family,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) encoder: StackShape,
    pub(super) decoder: StackShape,
    pub(super) positions: PositionsShape,
    pub(super) activation: Activation,
    /// The inner layer of the MLP is gated.
    pub(super) gated: bool,
    pub(super) norm_eps: f64,
    /// The factor of the embeddings.
    pub(super) embedding_scale: f64,
    /// The factor of the hidden states in front of the head.
    pub(super) output_scale: f64,
    /// Encoder, decoder and head have one matrix of embeddings, unless the checkpoint holds several that differ.
    pub(super) tied: bool,
    pub(super) dropout: f64,
    pub(super) attention_dropout: f64,
    pub(super) activation_dropout: f64,
    /// T5: a factor; BART: the standard deviation of initial weights.
    pub(super) init: f64,
    pub(super) pad_token_id: Option<i64>,
    pub(super) decoder_start_token_id: Option<i64>,
    pub(super) generation: GenerationConfig,
}

/// The family: it decides the names of variables and the places of the norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// RMSNorms in front of attention and MLP, and behind the last layer.
    T5,
    /// LayerNorms behind attention and MLP, and in front of the first layer.
    Bart,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StackShape {
    pub(super) layers: i64,
    pub(super) heads: i64,
    pub(super) head_dim: i64,
    pub(super) inner: i64,
    /// The probability that a layer is left out while training.
    pub(super) layerdrop: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PositionsShape {
    /// A learned bias on scores by distance.
    Relative { buckets: i64, max_distance: i64 },
    /// Learned embeddings, as many as this.
    Learned(i64),
}

const FAMILIES: [&str; 3] = ["bart", "mt5", "t5"];

impl ModelConfig for Seq2SeqConfig {
    fn model_types() -> Vec<&'static str> {
        FAMILIES.to_vec()
    }

    fn from_value(config: &Value) -> Result<Self> {
        let heads = &[Head::LanguageModel];
        let declared = Declared::read(config, &FAMILIES, heads, Head::LanguageModel)?;
        let bart = config["model_type"] == "bart";
        let read = if bart { Self::bart(config, declared)? } else { Self::t5(config, declared)? };
        read.check()
    }

    declared!();

    fn with_generation(mut self, generation: &Value) -> Result<Self> {
        self.generation = self.generation.overridden(generation)?;
        Ok(self)
    }
}

impl Seq2SeqConfig {
    fn t5(config: &Value, declared: Declared) -> Result<Self> {
        let multilingual = config["model_type"] == "mt5";
        let hidden_size = size(config, "d_model")?;
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        let mlp =
            text("feed_forward_proj").unwrap_or(if multilingual { "gated-gelu" } else { "relu" });
        let (gated, activation) = match mlp.split('-').collect::<Vec<_>>()[..] {
            // The first files that say `gelu` here mean its approximation; transformers reads them so.
            ["gated", "gelu"] => (true, "gelu_new"),
            ["gated", name] => (true, name),
            [name] => (false, name),
            _ => {
                refuse!(
                    InvalidConfig,
                    "'feed_forward_proj' is '{mlp}', expected NAME or gated-NAME"
                )
            }
        };
        // transformers derives both and writes them beside the key above, from where they win.
        let gated = flag(config, "is_gated_act", gated)?;
        let (activation, key) = match text("dense_act_fn") {
            Some(name) => (name, "dense_act_fn"),
            None => (activation, "feed_forward_proj"),
        };
        let layers = read_layers(config, "num_layers")?;
        let encoder = StackShape {
            layers,
            heads: size(config, "num_heads")?,
            head_dim: size(config, "d_kv")?,
            inner: size(config, "d_ff")?,
            layerdrop: 0.,
        };
        let decoder =
            StackShape { layers: layers_or(config, "num_decoder_layers", layers)?, ..encoder };
        // Not whether the head is tied, which the checkpoint shows: only what version 1.0 did with a tied one.
        let scaled = !multilingual
            && flag(config, "scale_decoder_outputs", flag(config, "tie_word_embeddings", true)?)?;
        let dropout = number(config, "dropout_rate", 0.1)?;
        Ok(Seq2SeqConfig {
            declared,
            family: Family::T5,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            encoder,
            decoder,
            positions: PositionsShape::Relative {
                buckets: size_or(config, "relative_attention_num_buckets", 32)?,
                max_distance: size_or(config, "relative_attention_max_distance", 128)?,
            },
            activation: Activation::named(activation, key)?,
            gated,
            norm_eps: number(config, "layer_norm_epsilon", 1e-6)?,
            embedding_scale: 1.,
            output_scale: if scaled { (hidden_size as f64).powf(-0.5) } else { 1. },
            tied: true,
            dropout,
            attention_dropout: dropout,
            activation_dropout: dropout,
            init: number(config, "initializer_factor", 1.)?,
            pad_token_id: optional(config, "pad_token_id", Some(0))?,
            decoder_start_token_id: optional(
                config,
                "decoder_start_token_id",
                multilingual.then_some(0),
            )?,
            generation: generation(config, Some(1), None, Some(0))?,
        })
    }

    fn bart(config: &Value, declared: Declared) -> Result<Self> {
        let hidden_size = size(config, "d_model")?;
        let stack = |side: &str| -> Result<StackShape> {
            let key = |what: &str| format!("{side}_{what}");
            let heads = size(config, &key("attention_heads"))?;
            if hidden_size % heads != 0 {
                refuse!(
                    InvalidConfig,
                    "'{side}_attention_heads' ({heads}) does not divide 'd_model' ({hidden_size})"
                );
            }
            Ok(StackShape {
                layers: read_layers(config, &key("layers"))?,
                heads,
                head_dim: hidden_size / heads,
                inner: size(config, &key("ffn_dim"))?,
                layerdrop: number(config, &key("layerdrop"), 0.)?,
            })
        };
        let activation = config.get("activation_function").and_then(Value::as_str);
        let scaled = flag(config, "scale_embedding", false)?;
        Ok(Seq2SeqConfig {
            declared,
            family: Family::Bart,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            encoder: stack("encoder")?,
            decoder: stack("decoder")?,
            positions: PositionsShape::Learned(size_or(config, "max_position_embeddings", 1024)?),
            activation: Activation::named(activation.unwrap_or("gelu"), "activation_function")?,
            gated: false,
            norm_eps: 1e-5,
            embedding_scale: if scaled { (hidden_size as f64).sqrt() } else { 1. },
            output_scale: 1.,
            tied: flag(config, "tie_word_embeddings", true)?,
            dropout: number(config, "dropout", 0.1)?,
            attention_dropout: number(config, "attention_dropout", 0.)?,
            activation_dropout: number(config, "activation_dropout", 0.)?,
            init: number(config, "init_std", 0.02)?,
            pad_token_id: optional(config, "pad_token_id", Some(1))?,
            decoder_start_token_id: optional(config, "decoder_start_token_id", Some(2))?,
            generation: generation(config, Some(2), Some(2), Some(1))?,
        })
    }

    fn check(self) -> Result<Self> {
        match self.positions {
            PositionsShape::Relative { buckets, max_distance }
                if buckets < 4 || max_distance <= buckets / 2 =>
            {
                refuse!(InvalidConfig, "'relative_attention_num_buckets' is {buckets} and 'relative_attention_max_distance' \
                     {max_distance}, expected at least 4, and more than half of the former")
            }
            _ => Ok(self),
        }
    }
}

/// `eos`, `forced_last` and `pad` stand where the keys do not.
fn generation(
    config: &Value,
    eos: Option<i64>,
    forced_last: Option<i64>,
    pad: Option<i64>,
) -> Result<GenerationConfig> {
    let mut read = GenerationConfig::from_value(config, eos, forced_last)?;
    read.pad = optional(config, "pad_token_id", pad)?;
    Ok(read)
}
