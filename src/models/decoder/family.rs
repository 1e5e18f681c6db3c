//! A family of decoders: a row of the table.

use serde_json::Value;

use super::config::DecoderConfig;
use super::form::{Names, Positions, QkvForm};
use crate::error::Result;
use crate::models::config::{flag, number};
use crate::models::nn::{Flow, NormKind, QkNorm};

/// One family. Options that only one family has are read by its `variant`.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    pub(super) names: Names,
    pub(super) keys: Keys,
    pub(super) norm: NormKind,
    pub(super) positions: Positions,
    /// The part of a head that a rope turns.
    pub(super) rotary: Rotary,
    /// The layers that a rope turns, and by which.
    pub(super) ropes: Ropes,
    /// The layers that see a window only.
    pub(super) windows: Windows,
    pub(super) flow: Flow,
    pub(super) qkv: QkvForm,
    pub(super) qk_norm: QkNorm,
    /// Two inner layers in the MLP, one of them the gate of the other.
    pub(super) gated: bool,
    /// Weights are stored as `[in, out]`.
    pub(super) transposed: bool,
    pub(super) qkv_bias: Switch,
    pub(super) o_bias: Switch,
    pub(super) mlp_bias: Switch,
    pub(super) head_bias: bool,
    /// True if head and embedding are tied when the configuration does not say.
    pub(super) tied: bool,
    pub(super) embedding_scale: Factor,
    pub(super) residual_scale: Factor,
    pub(super) logit_scale: Factor,
    pub(super) attention_scale: Factor,
    pub(super) variant: fn(&mut DecoderConfig, &Value) -> Result<()>,
}

/// Keys of `config.json`, and what holds where they are absent. An empty key: there is no such setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Keys {
    /// Default: as many as queries have.
    pub(super) kv_heads: &'static str,
    /// Default: four times the width, but for `intermediate_size`, which must be there.
    pub(super) intermediate: &'static str,
    pub(super) activation: (&'static [&'static str], &'static str),
    pub(super) eps: (&'static str, f64),
    pub(super) theta: (&'static str, f64),
    /// `max_position_embeddings` where it is not given and a rope needs it.
    pub(super) max_positions: i64,
    pub(super) embedding_dropout: (&'static str, f64),
    pub(super) attention_dropout: (&'static str, f64),
    /// On what attention and MLP add.
    pub(super) residual_dropout: [(&'static str, f64); 2],
    /// Bounds scores, and logits.
    pub(super) caps: [(&'static str, Option<f64>); 2],
    /// `sliding_window` where it is not given.
    pub(super) window: Option<i64>,
    /// Bounds queries, keys and values.
    pub(super) clip_qkv: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rotary {
    All,
    /// This part of it, by a key with a default.
    Part(&'static str, f64),
    /// A number of dimensions, by a key.
    Dims(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ropes {
    /// One rope turns all.
    One,
    /// Layers with a window have a rope of their own (Gemma 3).
    ByWindow,
    /// One rope, and layers without (SmolLM3).
    Some,
    /// One rope, a plain one or LongRoPE, which makes generation read again what it has kept (Phi 3).
    Long,
}

/// The layers that see a window only, where `layer_types` does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    All,
    /// The first, the third, ….
    Alternating,
    /// All but every n-th, by `sliding_window_pattern`.
    Pattern,
    /// From `max_window_layers` on, if `use_sliding_window`.
    From,
    /// Those without a rope, if `use_sliding_window`.
    WithoutRope,
}

/// A setting of the whole family, or one that a key with a default says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    Is(bool),
    Key(&'static str, bool),
}

/// A factor: a number, or what a key with a default says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Factor {
    One,
    Key(&'static str, f64),
    /// One over it.
    OverKey(&'static str, f64),
    /// One over its root.
    OverRootOf(&'static str, f64),
    /// The root of the model's width.
    RootOfWidth,
    /// One over the root of a head's width.
    OverRootOfHead,
}

impl Switch {
    pub(super) fn read(self, config: &Value) -> Result<bool> {
        match self {
            Switch::Is(known) => Ok(known),
            Switch::Key(key, default) => flag(config, key, default),
        }
    }
}

impl Factor {
    pub(super) fn read(self, config: &Value, width: i64, head_dim: i64) -> Result<f64> {
        Ok(match self {
            Factor::One => 1.,
            Factor::Key(key, default) => number(config, key, default)?,
            Factor::OverKey(key, default) => 1. / number(config, key, default)?,
            Factor::OverRootOf(key, default) => number(config, key, default)?.powf(-0.5),
            Factor::RootOfWidth => (width as f64).sqrt(),
            Factor::OverRootOfHead => (head_dim as f64).powf(-0.5),
        })
    }
}
