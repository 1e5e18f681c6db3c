//! The form of a decoder, where families differ: names of variables, positions, matrices.

/// Names of variables. Those of the second half are below a layer. An empty name: there is no such thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Names {
    /// The base model in a model with a head; the names that follow are below it.
    pub(super) base: &'static str,
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

/// The matrices of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkvForm {
    Apart,
    /// One: queries, keys, values.
    Parts,
    /// One: per key-value head its queries, its key, its value.
    Groups,
}
