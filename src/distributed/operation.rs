//! The ways to reduce tensors to one, and the tensors that can be sent.

use tch::{Kind, Tensor};

use crate::error::{refuse, Result};

/// The way in which an element of the result follows from those of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReduceOp {
    /// Their sum.
    Sum,
    /// Their mean, of floating-point numbers only.
    #[doc(alias = "AVG")]
    Mean,
    /// Their product.
    Product,
    /// The least of them.
    Min,
    /// The greatest of them.
    Max,
}

impl ReduceOp {
    /// The number of c10d; a mean is a sum first.
    pub(super) fn number(self) -> u8 {
        match self {
            ReduceOp::Sum | ReduceOp::Mean => 0,
            ReduceOp::Product => 2,
            ReduceOp::Min => 3,
            ReduceOp::Max => 4,
        }
    }
}

/// The kind of a tensor, which must be one that can be sent.
pub(super) fn sent_kind(tensor: &Tensor) -> Result<Kind> {
    if !tensor.defined() {
        refuse!(InvalidArgument, "an undefined tensor, expected one to send to the other ranks");
    }
    let kind = tensor.f_kind()?;
    let sent = matches!(
        kind,
        Kind::Float
            | Kind::Double
            | Kind::Half
            | Kind::BFloat16
            | Kind::Uint8
            | Kind::Int8
            | Kind::Int
            | Kind::Int64
            | Kind::Bool
    );
    if !sent || tensor.is_sparse() || tensor.is_mkldnn() {
        let layout = if tensor.is_sparse() { "sparse " } else { "" };
        refuse!(
            KindMismatch,
            "a tensor of kind {layout}{kind:?} cannot be sent to the other ranks, expected a dense one of numbers: f64, \
             f32, f16, bf16, u8, i8, i32 or i64"
        );
    }
    Ok(kind)
}
