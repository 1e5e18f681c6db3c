//! GGUF, the files of llama.cpp: metadata, and tensors in blocks of a few bits.
//!
//! A file is mapped, and every count, length and place in it is checked before it is used. Metadata and names are read
//! at once, arrays and tensors when they are asked for.
//!
//! ```no_run
//! use ln_tuning::gguf::GgufFile;
//!
//! let file = GgufFile::open("SmolLM2-135M-Instruct.Q4_1.gguf")?;
//! println!("{:?}", file.metadata().str("general.architecture")?);
//! for tensor in file.tensors() {
//!     println!("{} {} {:?}", tensor.name, tensor.block_type, tensor.shape);
//! }
//! # Ok::<(), ln_tuning::Error>(())
//! ```

mod cursor;
mod file;
mod magic;
mod metadata;
mod tensors;
mod value;
mod writer;

pub use self::file::GgufFile;
pub use self::metadata::Metadata;
pub use self::tensors::GgufTensor;
pub use self::value::{MetadataArray, MetadataValue, ValueType};
pub use self::writer::GgufWriter;
pub use crate::quantised::{BlockType, Encoding, Quantised};
