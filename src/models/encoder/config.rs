//! The configuration of a text encoder, for all families in one form.

use serde_json::Value;

use super::families::{Family, FAMILIES, POOLER};
use crate::error::{refuse, Result};
use crate::models::config::{
    check_divides, check_sizes, declared, flag, integer_or, layers, number, size, size_or, text,
    Declared, ModelConfig,
};
use crate::models::nn::Activation;
use crate::pretrained::Head;

/// The heads of encoders.
const HEADS: &[Head] =
    &[Head::None, Head::MaskedLm, Head::SequenceClassification, Head::TokenClassification];

/// The shape and the options of a text encoder, read from a `config.json` of transformers.
///
/// Families: `bert`, `roberta`, `xlm-roberta`, `distilbert`, each without a head, or with that of a masked language
/// model, of a classifier of sequences or of one of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub(super) declared: Declared,
    pub(super) family: &'static Family,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    /// The number of positions that have an embedding.
    pub(super) positions: i64,
    pub(super) token_types: Option<i64>,
    pub(super) padding_id: Option<i64>,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    /// The head's decoder is the word embedding.
    pub(super) tied: bool,
    pub(super) dropout: f64,
    pub(super) attention_dropout: f64,
    pub(super) sequence_dropout: f64,
    pub(super) token_dropout: f64,
    pub(super) initializer_range: f64,
}

impl ModelConfig for EncoderConfig {
    fn model_types() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.model_type).collect()
    }

    fn from_value(config: &Value) -> Result<Self> {
        let declared = Declared::read(config, &Self::model_types(), HEADS, Head::None)?;
        let is_read = |family: &&Family| family.model_type == config["model_type"];
        let family = FAMILIES.iter().find(is_read).unwrap_or(&FAMILIES[0]);
        let class = config.get("architectures").and_then(|classes| classes.get(0)?.as_str());
        let ending = declared.head().ending();
        if class.is_some_and(|class| class != ending && !class.starts_with(family.class)) {
            refuse!(
                Unsupported,
                "'architectures' begins with '{}', expected {}{ending}",
                class.unwrap_or_default(),
                family.class
            );
        }
        refuse_what_is_not_implemented(config)?;
        let keys = family.keys;
        let activation =
            Activation::named(text(config, keys.activation, "gelu")?, keys.activation)?;
        let dropout = number(config, keys.dropout, 0.1)?;
        let (sequence, default) = keys.sequence_dropout;
        let token_types = match family.token_types {
            true => Some(size_or(config, "type_vocab_size", 2)?),
            false => None,
        };
        let padding_id = match config.get("pad_token_id") {
            Some(Value::Null) => None,
            _ => Some(integer_or(config, "pad_token_id", family.padding_id)?),
        };
        let parsed = EncoderConfig {
            declared,
            family,
            vocab_size: size(config, "vocab_size")?,
            hidden_size: size(config, keys.hidden_size)?,
            intermediate_size: size(config, keys.intermediate_size)?,
            layers: layers(config, keys.layers)?,
            heads: size(config, keys.heads)?,
            positions: size_or(config, "max_position_embeddings", 512)?,
            token_types,
            padding_id,
            norm_eps: keys.norm_eps.map_or(Ok(1e-12), |key| number(config, key, 1e-12))?,
            activation,
            tied: flag(config, "tie_word_embeddings", true)?,
            dropout,
            attention_dropout: number(config, keys.attention_dropout, 0.1)?,
            sequence_dropout: number(config, sequence, default.unwrap_or(dropout))?,
            token_dropout: keys
                .token_dropout
                .map_or(Ok(dropout), |key| number(config, key, dropout))?,
            initializer_range: number(config, "initializer_range", 0.02)?,
        };
        parsed.check()
    }

    declared!();

    fn label_modules(&self) -> Vec<String> {
        let modules = match self.head() {
            Head::SequenceClassification => {
                vec![self.family.classifier.dense, self.family.classifier.output]
            }
            Head::TokenClassification => vec!["classifier"],
            _ => vec![],
        };
        modules.into_iter().map(str::to_owned).collect()
    }
}

impl EncoderConfig {
    /// Width of the hidden states.
    pub fn hidden_size(&self) -> i64 {
        self.hidden_size
    }

    /// The longest sequence that there are positions for.
    pub fn max_length(&self) -> i64 {
        match (self.family.positions_from_padding, self.padding_id) {
            (true, Some(padding)) => self.positions - padding - 1,
            _ => self.positions,
        }
    }

    /// True if the base model keeps its pooler below this head.
    pub(super) fn may_have_pooler(&self) -> bool {
        let pooler = format!("{}.{POOLER}", self.family.prefix);
        let dense = self.family.classifier.dense == pooler;
        let bare = self.head() == Head::None;
        self.family.pooler && (bare || (dense && self.head() == Head::SequenceClassification))
    }

    fn check(self) -> Result<Self> {
        let keys = self.family.keys;
        check_divides((keys.heads, self.heads), (keys.hidden_size, self.hidden_size))?;
        match self.padding_id {
            Some(id) if !(0..self.vocab_size).contains(&id) => {
                refuse!(
                    InvalidConfig,
                    "'pad_token_id' is {id}, and there are {} ids",
                    self.vocab_size
                )
            }
            None if self.family.positions_from_padding => {
                refuse!(InvalidConfig, "'pad_token_id' is null, and positions count from it")
            }
            _ => {}
        }
        check_sizes(&[("max_position_embeddings", self.max_length())])?;
        Ok(self)
    }
}

fn refuse_what_is_not_implemented(config: &Value) -> Result<()> {
    for key in ["is_decoder", "add_cross_attention"] {
        if flag(config, key, false)? {
            refuse!(Unsupported, "'{key}' is true: only encoders are implemented");
        }
    }
    match config.get("position_embedding_type") {
        None | Some(Value::Null) => {}
        Some(kind) if kind == "absolute" => {}
        Some(other) => {
            refuse!(Unsupported, "'position_embedding_type' is {other}, expected \"absolute\"");
        }
    }
    Ok(())
}
