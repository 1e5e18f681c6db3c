//! What may differ between families of decoders.

/// One family: the names of its variables, the keys of its `config.json`, and how its parts are put together.
#[derive(Debug, PartialEq)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    pub(super) names: Names,
    pub(super) keys: Keys,
    pub(super) norm: NormKind,
    pub(super) positions: Positions,
    pub(super) flow: Flow,
    pub(super) qkv: Qkv,
    pub(super) qk_norm: QkNorm,
    /// Two inner layers in the MLP, one of them the gate of the other.
    pub(super) gated: bool,
    /// Weights are stored as `[in, out]`.
    pub(super) transposed: bool,
    pub(super) qkv_bias: Switch,
    pub(super) o_bias: Switch,
    pub(super) mlp_bias: Switch,
    pub(super) head_bias: bool,
    /// Whether `sliding_window` counts.
    pub(super) window: Switch,
    /// Whether head and embedding are tied where the configuration does not say.
    pub(super) tied: bool,
}

/// Names of variables. Those of the second half are below a layer. An empty name: there is no such thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Names {
    pub(super) embed: &'static str,
    pub(super) positions: &'static str,
    pub(super) embed_norm: &'static str,
    pub(super) layers: &'static str,
    pub(super) norm: &'static str,
    /// One name per matrix.
    pub(super) qkv: &'static [&'static str],
    pub(super) o: &'static str,
    /// The gate first, if there is one; one name for both where they are one matrix.
    pub(super) inner: &'static [&'static str],
    pub(super) outer: &'static str,
    /// Before attention, behind it, before the MLP, behind it.
    pub(super) norms: [&'static str; 4],
    /// Of queries and of keys.
    pub(super) qk_norms: [&'static str; 2],
}

/// Keys of `config.json`, and what holds where they are absent. An empty key: there is no such setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Keys {
    /// Default: as many as queries have.
    pub(super) kv_heads: &'static str,
    /// Default: four times the width.
    pub(super) intermediate: &'static str,
    pub(super) activation: (&'static str, &'static str),
    pub(super) eps: (&'static str, f64),
    pub(super) theta: (&'static str, f64),
    /// The part of a head that is turned.
    pub(super) rotary: (&'static str, f64),
    pub(super) embedding_dropout: (&'static str, f64),
    pub(super) attention_dropout: (&'static str, f64),
    /// On what attention and MLP add.
    pub(super) residual_dropout: [(&'static str, f64); 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormKind {
    Rms,
    /// RMSNorm whose weights count from 1: y · (1 + w).
    RmsFromOne,
    Layer,
    LayerWithoutBias,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// Queries and keys are turned; the dimensions that form a pair stand half a head apart, or side by side.
    Rope { side_by_side: bool },
    /// An embedding per position, the first at row `offset`. Padding does not count where `by_tokens`.
    Learned { offset: i64, by_tokens: bool },
    /// A bias on the scores that grows with the position (arXiv 2108.12409). Falcon rounds it to bf16 and divides it by
    /// √head_dim.
    Alibi { falcon: bool },
}

/// How a block is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Attention, then the MLP; norms stand inside the branches.
    Sequential,
    /// The norms behind stand on the sums.
    NormedSums,
    /// Both see the block's input, through one norm or one each.
    Parallel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qkv {
    Apart,
    /// One matrix: queries, keys, values.
    Parts,
    /// One matrix: per key-value head its queries, its key, its value.
    Groups,
}

/// Whether queries and keys are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head by itself, with weights that all heads share.
    Heads,
    /// Each head by itself with weights of its own: one tensor for all heads, or one each.
    OwnHeads {
        listed: bool,
    },
    /// All heads together.
    Whole,
}

/// What is so for the whole family, or said by a key with a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    Is(bool),
    Key(&'static str, bool),
}
