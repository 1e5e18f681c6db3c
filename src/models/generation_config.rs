//! The rules of generation in a model's files: `generation_config.json`, or `config.json` if there is none.

use serde_json::Value;

use super::config::{integer, number};
use crate::error::{refuse, Error, Result};

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct GenerationConfig {
    /// The token that a decoder beside an encoder starts from.
    pub(super) start: Option<i64>,
    pub(super) pad: Option<i64>,
    pub(super) eos: Vec<i64>,
    /// The only choice for the first token, and for the last that there may be.
    pub(super) forced_first: Option<i64>,
    pub(super) forced_last: Option<i64>,
    pub(super) repetition_penalty: f64,
    /// An option that changes the tokens and is not implemented.
    refused: Option<String>,
}

impl GenerationConfig {
    /// `eos` and `forced_last` stand where the keys do not.
    pub(super) fn from_value(
        config: &Value,
        eos: Option<i64>,
        forced_last: Option<i64>,
    ) -> Result<Self> {
        // Nothing, or what says that nothing is done.
        let idle = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.),
            _ => false,
        };
        let set = |key: &str| config.get(key).is_some_and(|value| !idle(value));
        let one = |key: &str| Ok::<_, Error>(set(key) && number(config, key, 1.)? != 1.);
        let refused = REFUSED.iter().copied().find(|key| set(key));
        let refused = match refused {
            None if one("encoder_repetition_penalty")? => Some("encoder_repetition_penalty"),
            None if one("guidance_scale")? => Some("guidance_scale"),
            None if one("num_beams")? => Some("num_beams"),
            refused => refused,
        };
        Ok(GenerationConfig {
            start: optional(config, "decoder_start_token_id", None)?,
            pad: optional(config, "pad_token_id", None)?.filter(|id| *id >= 0),
            eos: match config.get("eos_token_id") {
                None => eos.into_iter().collect(),
                Some(Value::Array(ids)) => match ids.iter().map(Value::as_i64).collect() {
                    Some(ids) => ids,
                    None => {
                        refuse!(InvalidConfig, "'eos_token_id' holds something else than integers")
                    }
                },
                Some(_) => optional(config, "eos_token_id", None)?.into_iter().collect(),
            },
            forced_first: optional(config, "forced_bos_token_id", None)?,
            forced_last: optional(config, "forced_eos_token_id", forced_last)?,
            repetition_penalty: number(config, "repetition_penalty", 1.)?,
            refused: refused.map(str::to_owned),
        })
    }

    /// These rules replaced by those of another file. Tokens that it does not name stay.
    pub(super) fn overridden(self, config: &Value) -> Result<Self> {
        let mut new = Self::from_value(config, None, None)?;
        if config.get("eos_token_id").is_none() {
            new.eos = self.eos;
        }
        new.start = new.start.or(self.start);
        new.pad = new.pad.or(self.pad);
        Ok(new)
    }

    /// Refuses options that change the tokens and are not implemented.
    pub(super) fn check(&self) -> Result<()> {
        match &self.refused {
            Some(option) => refuse!(
                Unsupported,
                "'{option}' is set in the configuration of generation, which is not implemented: take it out of \
                 generation_config.json"
            ),
            None => Ok(()),
        }
    }
}

/// Options of generation that change which token is the likeliest.
const REFUSED: [&str; 10] = [
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "forced_decoder_ids",
];

/// An integer, `default` where the key is not there, nothing where it is null.
pub(super) fn optional(config: &Value, key: &str, default: Option<i64>) -> Result<Option<i64>> {
    match config.get(key) {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => integer(config, key).map(Some),
    }
}
