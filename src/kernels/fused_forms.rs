//! The forms of the fused functions, by the numbers that they have in `csrc`.
// Models use most of them.
#![cfg_attr(not(all(fused, feature = "models")), allow(dead_code))]

use tch::Tensor;

/// The form of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormForm {
    /// RMSNorm.
    Rms = 0,
    /// RMSNorm whose weights count from 1.
    RmsFromOne = 1,
    /// LayerNorm.
    Layer = 2,
}

/// The activation of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `gelu`, by the error function.
    Gelu = 0,
    /// `gelu_pytorch_tanh`.
    GeluTanh = 1,
    /// `quick_gelu`.
    QuickGelu = 2,
    /// `relu`.
    Relu = 3,
    /// `silu`.
    Silu = 4,
}

/// Attention to all keys that are seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attended<'a> {
    /// `[length, keys]` or `[batch or 1, 1, length or 1, keys]`, Bool: true where a key is seen.
    pub(crate) mask: Option<&'a Tensor>,
    /// Only keys up to the query's place are seen; without a mask.
    pub(crate) causal: bool,
    pub(crate) scale: f64,
    /// Bounds the scores.
    pub(crate) cap: Option<f64>,
}

/// Cross entropy of classes, and what is done with the logits before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CrossEntropy<'a> {
    /// Added to the logits, in f32.
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) scale: f64,
    pub(crate) cap: Option<f64>,
    pub(crate) smoothing: f64,
    pub(crate) z_loss: f64,
    /// The gradient shall be computed.
    pub(crate) wanted: bool,
    /// The place of the gradient, `[rows, classes]` in any kind; `None`: that of the logits.
    pub(crate) into: Option<&'a Tensor>,
}
