//! The configuration of a decoder, for all families in one form.

use super::form::{Names, Positions, QkvForm};
use crate::error::Result;
use crate::models::config::{check_divides, check_sizes, Declared};
use crate::models::generation_config::GenerationConfig;
use crate::models::nn::{Activation, Flow, NormKind, QkNorm, Rope};
use crate::pretrained::Head;

/// The shape and the options of a decoder-only language model, read from a `config.json` of transformers.
///
/// Families: `bloom`, `cohere`, `falcon`, `gemma`, `gemma2`, `gemma3_text`, `gpt2`, `gpt_neox`, `gptj`, `granite`,
/// `llama`, `mistral`, `olmo`, `olmo2`, `opt`, `phi`, `phi3`, `qwen2`, `qwen3`, `smollm3`, `stablelm`, `starcoder2`.
///
/// Ropes are of every `rope_type` of transformers: linear, dynamic, yarn, longrope, llama3 and proportional, from
/// `rope_parameters` or `rope_scaling`. The longest row of a call decides how long its sequence is. transformers'
/// dynamic rope also remembers longer ones from calls before; here a call gives the same numbers always.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub(super) declared: Declared,
    pub(super) names: Names,
    pub(super) qkv: QkvForm,
    pub(super) gated: bool,
    /// Weights are stored as `[in, out]`.
    pub(super) transposed: bool,
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    /// Width of embedding and head, where it is not that of the blocks.
    pub(super) embed_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
    /// The number of positions that have an embedding, or that the model has learned from.
    pub(super) max_positions: i64,
    pub(super) norm: NormKind,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    pub(super) positions: Positions,
    pub(super) ropes: Vec<Rope>,
    /// Per layer, the one of `ropes` that turns queries and keys; `None`: they are not turned.
    pub(super) layer_ropes: Vec<Option<usize>>,
    /// Generation reads its places anew when there are more than this: the keys that it has kept are turned in another
    /// way from there on.
    pub(super) kept_places: Option<i64>,
    pub(super) flow: Flow,
    pub(super) tied: bool,
    pub(super) qkv_bias: bool,
    pub(super) o_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) head_bias: bool,
    pub(super) qk_norm: QkNorm,
    pub(super) clip_qkv: Option<f64>,
    /// Embeddings are multiplied with it.
    pub(super) embedding_scale: f64,
    /// Those of tokens alone, and not what a larger model puts into their places.
    pub(super) scales_tokens: bool,
    /// Attention and MLP are multiplied with it before they are added.
    pub(super) residual_scale: f64,
    /// Logits are multiplied with it.
    pub(super) logit_scale: f64,
    /// Per layer, the factor of the scores.
    pub(super) attention_scales: Vec<f64>,
    pub(super) attention_cap: Option<f64>,
    pub(super) logit_cap: Option<f64>,
    /// Per layer, the number of places that it sees; `None`: all.
    pub(super) windows: Vec<Option<i64>>,
    pub(super) embedding_dropout: f64,
    pub(super) attention_dropout: f64,
    pub(super) residual_dropout: [f64; 2],
    pub(super) initializer_range: f64,
    pub(super) pad_token_id: Option<i64>,
    pub(super) generation: GenerationConfig,
}

impl DecoderConfig {
    /// The first setting in which two configurations of one computation differ: this one's and the other's, in words;
    /// `None` if they compute the same. What they declare, such as labels and tokens, how a new model begins, and what
    /// counts in training alone are left out. Ropes may differ by the rounding of their settings to f32.
    pub fn difference(&self, other: &Self) -> Option<(String, String)> {
        let settings = |config: &Self| -> Vec<String> {
            let config = DecoderConfig {
                declared: self.declared.clone(),
                generation: self.generation.clone(),
                pad_token_id: self.pad_token_id,
                initializer_range: self.initializer_range,
                embedding_dropout: self.embedding_dropout,
                attention_dropout: self.attention_dropout,
                residual_dropout: self.residual_dropout,
                ..config.clone()
            };
            // Fields begin behind four spaces, what is in them behind more.
            let text = format!("{config:#?}").replace("\n     ", " ");
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        let mut like = other.clone();
        for (its, own) in like.ropes.iter_mut().zip(&self.ropes) {
            if own.is_like(its) {
                its.clone_from(own);
            }
        }
        let (own, its) = (settings(self), settings(&like));
        own.into_iter().zip(its).find(|(own, its)| own != its)
    }

    /// Number of tokens that the model knows.
    pub fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    /// True if it drops some of its activations while it trains: one of its rates of dropout is above 0.
    pub fn has_dropout(&self) -> bool {
        let [attention, mlp] = self.residual_dropout;
        [self.embedding_dropout, self.attention_dropout, attention, mlp]
            .iter()
            .any(|rate| *rate > 0.)
    }

    /// Width of the [`hidden_states`](crate::models::Model::hidden_states): that of the head.
    pub fn output_size(&self) -> i64 {
        self.embed_size
    }

    /// The tokens that end a text (`eos_token_id`).
    pub fn eos_token_ids(&self) -> &[i64] {
        &self.generation.eos
    }

    /// The padding's id, if there is one: `pad_token_id` of `config.json`, else of `generation_config.json`.
    pub fn pad_token_id(&self) -> Option<i64> {
        self.pad_token_id.or(self.generation.pad)
    }

    /// The length to pad rows of `length` places to, on the right: the next multiple of `multiple`, or less where
    /// padding that far would change what the model computes. It has no more learned positions, or its rope depends on
    /// the length of a call (dynamic, longrope).
    ///
    /// ```
    /// # use ln_tuning::models::{DecoderConfig, ModelConfig};
    /// let config = serde_json::json!({
    ///     "model_type": "gpt2", "vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 100,
    /// });
    /// let config = DecoderConfig::from_value(&config)?;
    /// assert_eq!((config.padded_length(60, 64), config.padded_length(70, 64)), (64, 100));
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    #[doc(alias = "pad_to_multiple_of")]
    pub fn padded_length(&self, length: i64, multiple: i64) -> i64 {
        let multiple = multiple.max(1);
        let mut padded = (length / multiple + i64::from(length % multiple > 0)) * multiple;
        if let Positions::Learned { .. } = self.positions {
            padded = padded.min(self.max_positions);
        }
        for rope in &self.ropes {
            padded = rope.longest_like(length, padded);
        }
        padded.max(length)
    }

    /// The same as a part of a larger model, which has the head, if any: a plain matrix, tied or not. The larger model
    /// keeps its cache, whatever its rope does, as in transformers.
    pub(in crate::models) fn within(mut self, head: Head, tied: bool) -> Result<Self> {
        self.declared.set_head(head)?;
        (self.tied, self.head_bias) = (tied, false);
        (self.logit_scale, self.logit_cap) = (1., None);
        self.kept_places = None;
        Ok(self)
    }

    /// The same whose rope turns each pair of dimensions by the positions on an axis of its own.
    pub(in crate::models) fn with_axes(mut self, axis: impl Fn(i64) -> i64) -> Self {
        for rope in &mut self.ropes {
            rope.axes = (0..rope.frequencies.len() as i64).map(&axis).collect();
        }
        self
    }

    /// Width of the blocks, which is that of what takes the place of embeddings.
    pub(in crate::models) fn hidden_size(&self) -> i64 {
        self.hidden_size
    }

    pub(super) fn check(self) -> Result<Self> {
        check_sizes(&[("head_dim", self.head_dim)])?;
        check_divides(("num_key_value_heads", self.kv_heads), ("num_attention_heads", self.heads))?;
        Ok(self)
    }
}
