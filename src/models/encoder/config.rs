//! What `config.json` says of a text encoder, for all families in one form.

use serde_json::{json, Map, Value};

use super::families::{Family, FAMILIES, POOLER};
use crate::error::{Error, ErrorKind, Result};
use crate::models::activation::Activation;
use crate::models::fields::{checked_labels, flag, integer, integer_or, invalid, labels, number};

/// What stands on top of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncoderHead {
    /// Nothing: `BertModel`. Hidden states, and the pooler's output where there is a pooler.
    None,
    /// Logits over the vocabulary at each token: `BertForMaskedLM`.
    MaskedLm,
    /// Logits over the labels for the whole sequence: `BertForSequenceClassification`.
    SequenceClassification,
    /// Logits over the labels at each token: `BertForTokenClassification`.
    TokenClassification,
}

const HEADS: [(EncoderHead, &str); 4] = [
    (EncoderHead::None, "Model"),
    (EncoderHead::MaskedLm, "ForMaskedLM"),
    (EncoderHead::SequenceClassification, "ForSequenceClassification"),
    (EncoderHead::TokenClassification, "ForTokenClassification"),
];

impl EncoderHead {
    /// Whether it has labels.
    pub fn is_classifier(self) -> bool {
        matches!(self, EncoderHead::SequenceClassification | EncoderHead::TokenClassification)
    }

    fn class_ending(self) -> &'static str {
        HEADS.iter().find(|(head, _)| *head == self).map_or("Model", |(_, ending)| ending)
    }
}

/// The shape and the options of a text encoder, read from a `config.json` of transformers.
///
/// Families: `bert`, `roberta`, `xlm-roberta`, `distilbert`, each with every [`EncoderHead`].
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub(super) family: &'static Family,
    pub(super) head: EncoderHead,
    pub(super) labels: Vec<String>,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    /// How many positions have an embedding.
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
    /// The file's fields, those included that are not looked at.
    fields: Map<String, Value>,
}

impl EncoderConfig {
    /// Reads the parsed `config.json`. The head is the one of `architectures`.
    ///
    /// # Errors
    /// `Unsupported` for a `model_type` that is not a family above, a head that is not an [`EncoderHead`], or an option
    /// that changes the computation and is not implemented; `InvalidConfig` for a key that is missing or does not fit.
    pub fn from_value(config: &Value) -> Result<Self> {
        let parsed = Self::with_any_head(config)?;
        let class = config.get("architectures").and_then(|classes| classes.get(0));
        let class = class.and_then(Value::as_str).unwrap_or_default();
        let ending = class.strip_prefix(parsed.family.class);
        match HEADS.iter().find(|(_, known)| Some(*known) == ending) {
            Some((head, _)) => Ok(parsed.with_head(*head)),
            None => {
                let known = HEADS.map(|(_, ending)| format!("{}{ending}", parsed.family.class));
                Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "'architectures' begins with '{class}', expected one of {}: name the head \
                         (Encoder::from_pretrained_as)",
                        known.join(", ")
                    ),
                ))
            }
        }
    }

    /// [`from_value`](Self::from_value) whatever `architectures` says, without a head.
    pub(super) fn with_any_head(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
            let known = Self::model_types();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("model_type is '{model_type}', expected one of {}", known.join(", ")),
            ));
        };
        refuse_what_is_not_implemented(config)?;
        let keys = family.keys;
        let activation = match config.get(keys.activation) {
            None | Some(Value::Null) => Activation::Gelu,
            Some(Value::String(name)) => Activation::named(name, keys.activation)?,
            Some(other) => {
                return invalid(format!("'{}' is {other}, expected a name", keys.activation));
            }
        };
        let dropout = number(config, keys.dropout, 0.1)?;
        let (sequence, default) = keys.sequence_dropout;
        let token_types = match family.token_types {
            true => Some(integer_or(config, "type_vocab_size", 2)?),
            false => None,
        };
        let padding_id = match config.get("pad_token_id") {
            Some(Value::Null) => None,
            _ => Some(integer_or(config, "pad_token_id", family.padding_id)?),
        };
        let parsed = EncoderConfig {
            family,
            head: EncoderHead::None,
            labels: labels(config)?,
            vocab_size: integer(config, "vocab_size")?,
            hidden_size: integer(config, keys.hidden_size)?,
            intermediate_size: integer(config, keys.intermediate_size)?,
            layers: integer(config, keys.layers)?,
            heads: integer(config, keys.heads)?,
            positions: integer_or(config, "max_position_embeddings", 512)?,
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
            fields: config.as_object().cloned().unwrap_or_default(),
        };
        parsed.check()
    }

    /// The same with another head.
    pub fn with_head(mut self, head: EncoderHead) -> Self {
        self.head = head;
        self
    }

    /// The same with other labels. What the file says of the kind of problem was about the former ones, and goes.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none, or one twice.
    pub fn with_labels<L: Into<String>>(
        mut self,
        labels: impl IntoIterator<Item = L>,
    ) -> Result<Self> {
        self.labels = checked_labels(labels)?;
        self.fields.shift_remove("problem_type");
        Ok(self)
    }

    pub(in crate::models) fn model_types() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.model_type).collect()
    }

    /// The family, such as `bert`.
    pub fn model_type(&self) -> &str {
        self.family.model_type
    }

    /// What stands on top.
    pub fn head(&self) -> EncoderHead {
        self.head
    }

    /// The labels' names, in the order of the logits.
    #[doc(alias = "id2label")]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

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

    /// The text of a `config.json` that transformers reads: the fields that were read, with the head and the labels.
    pub fn to_json(&self) -> String {
        let mut fields = self.fields.clone();
        let class = format!("{}{}", self.family.class, self.head.class_ending());
        fields.insert("architectures".into(), json!([class]));
        fields.shift_remove("num_labels");
        let labels = self.labels.iter().enumerate();
        let by_id: Map<_, _> =
            labels.clone().map(|(id, label)| (id.to_string(), json!(label))).collect();
        let by_label: Map<_, _> = labels.map(|(id, label)| (label.clone(), json!(id))).collect();
        fields.insert("id2label".into(), Value::Object(by_id));
        fields.insert("label2id".into(), Value::Object(by_label));
        format!("{:#}\n", Value::Object(fields))
    }

    /// The full name of a tensor of the base model.
    pub(super) fn base(&self, name: &str) -> String {
        match self.head {
            EncoderHead::None => name.to_owned(),
            _ => format!("{}.{name}", self.family.prefix),
        }
    }

    /// Whether this head leaves the base model its pooler.
    pub(super) fn may_have_pooler(&self) -> bool {
        let bare = self.head == EncoderHead::None;
        let dense = self.family.classifier.dense == self.base(POOLER);
        self.family.pooler && (bare || (dense && self.head == EncoderHead::SequenceClassification))
    }

    /// The modules of the head.
    pub(super) fn head_modules(&self) -> Vec<&'static str> {
        let (masked_lm, classifier) = (self.family.masked_lm, self.family.classifier);
        match self.head {
            EncoderHead::None => vec![],
            EncoderHead::MaskedLm => {
                vec![masked_lm.dense, masked_lm.norm, masked_lm.decoder, masked_lm.bias]
            }
            EncoderHead::SequenceClassification => vec![classifier.dense, classifier.output],
            EncoderHead::TokenClassification => vec!["classifier"],
        }
    }

    fn check(self) -> Result<Self> {
        let keys = self.family.keys;
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            (keys.hidden_size, self.hidden_size),
            (keys.intermediate_size, self.intermediate_size),
            (keys.heads, self.heads),
            ("max_position_embeddings", self.max_length()),
            ("type_vocab_size", self.token_types.unwrap_or(1)),
        ] {
            if size <= 0 {
                return invalid(format!("'{name}' leaves {size}, expected a positive number"));
            }
        }
        if self.hidden_size % self.heads != 0 {
            return invalid(format!(
                "'{}' ({}) does not divide '{}' ({})",
                keys.heads, self.heads, keys.hidden_size, self.hidden_size
            ));
        }
        match self.padding_id {
            Some(id) if !(0..self.vocab_size).contains(&id) => {
                invalid(format!("'pad_token_id' is {id}, and there are {} ids", self.vocab_size))
            }
            None if self.family.positions_from_padding => {
                invalid("'pad_token_id' is null, and positions count from it".into())
            }
            _ => Ok(self),
        }
    }
}

fn refuse_what_is_not_implemented(config: &Value) -> Result<()> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Unsupported, message));
    for key in ["is_decoder", "add_cross_attention"] {
        if flag(config, key, false)? {
            return refuse(format!("'{key}' is true: only encoders are implemented"));
        }
    }
    match config.get("position_embedding_type") {
        None | Some(Value::Null) => {}
        Some(kind) if kind == "absolute" => {}
        Some(other) => {
            return refuse(format!("'position_embedding_type' is {other}, expected \"absolute\""));
        }
    }
    for key in ["quantization_config", "pruned_heads"] {
        let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        if config.get(key).is_some_and(|value| !empty(value)) {
            return refuse(format!("'{key}' is set: load a checkpoint without it"));
        }
    }
    Ok(())
}
