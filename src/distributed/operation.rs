//! The ways to reduce tensors to one.

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
