//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.

mod activation;
mod decoder;
mod encoder;
mod encoder_config;
mod encoder_families;
mod encoder_heads;
mod fields;
mod generation;
mod parts;
mod self_attention;
mod vit;
mod weights;

pub use decoder::{Decoder, DecoderConfig, Inputs};
pub use encoder::Encoder;
pub use encoder_config::{EncoderConfig, EncoderHead};
pub use generation::GenerateOptions;
pub use vit::{ViTConfig, ViTForImageClassification};
