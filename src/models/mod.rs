//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.

mod activation;
mod attention;
mod decoder;
mod decoder_config;
mod fields;
mod parts;
mod rope;
mod vit;
mod weights;

pub use decoder::Decoder;
pub use decoder_config::DecoderConfig;
pub use vit::{ViTConfig, ViTForImageClassification};
