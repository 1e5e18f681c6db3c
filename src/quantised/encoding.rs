//! The encodings of quantised matrices, and the sizes of their groups.

use std::fmt;

use tch::Kind;

use super::block_type::BlockType;

/// An encoding of weights in few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// Blocks as a GGUF file has them.
    Block(BlockType),
    /// A byte per weight, from -127 to 127, times a factor in f32 per row: the largest absolute value of the row / 127.
    Int8,
    /// Four bits per weight, for one of 16 values, times a factor in f32 per 64 weights of the flattened matrix: their
    /// largest absolute value (QLoRA, arXiv 2305.14314, as bitsandbytes computes it).
    Nf4,
}

/// The unit of an encoding.
pub(super) struct Group {
    pub(super) bytes: i64,
    pub(super) weights: i64,
}

impl Encoding {
    /// For rows of so many columns.
    pub(super) fn group(self, columns: i64) -> Group {
        match self {
            Encoding::Block(block_type) => Group {
                bytes: block_type.block_bytes() as i64,
                weights: block_type.block_len() as i64,
            },
            Encoding::Int8 => Group { bytes: columns.saturating_add(4), weights: columns.max(1) },
            Encoding::Nf4 => Group { bytes: 36, weights: 64 },
        }
    }

    /// The kind of plain numbers, if these are.
    pub(super) fn stored(self) -> Option<Kind> {
        match self {
            Encoding::Block(block_type) => block_type.kind(),
            _ => None,
        }
    }

    /// The bytes of weights of this shape; `None` if they cannot be in this encoding.
    pub(crate) fn bytes(self, shape: &[i64]) -> Option<i64> {
        if shape.iter().any(|size| *size < 0) {
            return None;
        }
        let columns = shape.last().copied().unwrap_or(1);
        let group = self.group(columns);
        let weights = shape.iter().try_fold(1_i64, |all, size| all.checked_mul(*size))?;
        if matches!(self, Encoding::Block(_)) && columns % group.weights != 0 {
            return None;
        }
        let groups = weights.checked_add(group.weights - 1)? / group.weights;
        groups.checked_mul(group.bytes)
    }
}

impl From<BlockType> for Encoding {
    fn from(block_type: BlockType) -> Self {
        Encoding::Block(block_type)
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::Block(block_type) => block_type.fmt(f),
            Encoding::Int8 => f.write_str("int8"),
            Encoding::Nf4 => f.write_str("nf4"),
        }
    }
}
