//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.

mod activation;
mod decoder;
mod fields;
mod generation;
mod parts;
mod vit;
mod weights;

pub use decoder::{Decoder, DecoderConfig, Inputs};
pub use generation::GenerateOptions;
pub use vit::{ViTConfig, ViTForImageClassification};
