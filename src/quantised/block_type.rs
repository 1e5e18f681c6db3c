//! The types that tensors of a GGUF file have, by their numbers there.

use std::fmt;

use tch::Kind;

use crate::error::{refusal, Result};

/// One row of the table: the variant, its number in files, the weights of a block, the bytes of a block.
macro_rules! block_types {
    ($($name:ident $number:literal $len:literal $bytes:literal,)+) => {
        /// The type of a tensor in a GGUF file: how many weights a block holds, in how many bytes.
        ///
        /// The names are those of llama.cpp and of the `gguf` package.
        #[doc(alias = "GGMLQuantizationType")]
        #[doc(alias = "ggml_type")]
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum BlockType { $($name,)+ }

        impl BlockType {
            /// Every type, in the order of the numbers.
            pub const ALL: &[BlockType] = &[$(BlockType::$name,)+];

            /// The number that stands for it in a file.
            pub fn number(self) -> u32 {
                match self { $(BlockType::$name => $number,)+ }
            }

            /// The weights of a block; 1 for a type that is not quantised.
            pub fn block_len(self) -> usize {
                match self { $(BlockType::$name => $len,)+ }
            }

            /// The bytes of a block.
            pub fn block_bytes(self) -> usize {
                match self { $(BlockType::$name => $bytes,)+ }
            }
        }
    };
}

block_types! {
    F32 0 1 4,
    F16 1 1 2,
    Q4_0 2 32 18,
    Q4_1 3 32 20,
    Q5_0 6 32 22,
    Q5_1 7 32 24,
    Q8_0 8 32 34,
    Q8_1 9 32 40,
    Q2_K 10 256 84,
    Q3_K 11 256 110,
    Q4_K 12 256 144,
    Q5_K 13 256 176,
    Q6_K 14 256 210,
    Q8_K 15 256 292,
    IQ2_XXS 16 256 66,
    IQ2_XS 17 256 74,
    IQ3_XXS 18 256 98,
    IQ1_S 19 256 50,
    IQ4_NL 20 32 18,
    IQ3_S 21 256 110,
    IQ2_S 22 256 82,
    IQ4_XS 23 256 136,
    I8 24 1 1,
    I16 25 1 2,
    I32 26 1 4,
    I64 27 1 8,
    F64 28 1 8,
    IQ1_M 29 256 56,
    BF16 30 1 2,
    TQ1_0 34 256 54,
    TQ2_0 35 256 66,
    MXFP4 39 32 17,
    NVFP4 40 64 36,
    Q1_0 41 128 18,
}

impl BlockType {
    /// The type of a number in a file; `None` for one that no version of the format that is known here has.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.number() == number)
    }

    /// The kind of a type that is not quantised.
    pub fn kind(self) -> Option<Kind> {
        Some(match self {
            BlockType::F32 => Kind::Float,
            BlockType::F16 => Kind::Half,
            BlockType::BF16 => Kind::BFloat16,
            BlockType::F64 => Kind::Double,
            BlockType::I8 => Kind::Int8,
            BlockType::I16 => Kind::Int16,
            BlockType::I32 => Kind::Int,
            BlockType::I64 => Kind::Int64,
            _ => return None,
        })
    }

    /// True if its weights can be computed here.
    pub fn is_readable(self) -> bool {
        use BlockType::*;
        self.kind().is_some()
            || matches!(
                self,
                Q4_0 | Q4_1
                    | Q5_0
                    | Q5_1
                    | Q8_0
                    | Q2_K
                    | Q3_K
                    | Q4_K
                    | Q5_K
                    | Q6_K
                    | IQ4_NL
                    | IQ4_XS
            )
    }

    /// The bytes of a row of `weights` weights; `None` if they are no whole number of blocks, or too many.
    pub fn row_bytes(self, weights: u64) -> Option<u64> {
        let len = self.block_len() as u64;
        if !weights.is_multiple_of(len) {
            return None;
        }
        (weights / len).checked_mul(self.block_bytes() as u64)
    }

    /// Refuses a type whose weights cannot be computed here.
    pub(crate) fn check_readable(self, name: &str) -> Result<()> {
        if self.is_readable() {
            return Ok(());
        }
        let readable: Vec<String> =
            Self::ALL.iter().filter(|known| known.is_readable()).map(ToString::to_string).collect();
        Err(refusal!(
            Unsupported,
            "'{name}' has type {self}, which is not implemented; implemented are {}. Take a file of another type, such \
             as Q8_0 or Q4_0, or make one from the unquantised model: `llama-quantize model-f16.gguf out.gguf Q8_0`",
            readable.join(", ")
        ))
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
