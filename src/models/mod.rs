//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.

mod activation;
mod any;
mod decoder;
mod encoder;
mod fields;
mod generation;
mod multi_head;
mod parts;
mod self_attention;
mod seq2seq;
mod vit;
mod weights;

pub use any::AnyModel;
pub use decoder::{Decoder, DecoderConfig, Inputs};
pub use encoder::{Encoder, EncoderConfig, EncoderHead};
pub use generation::GenerateOptions;
pub use seq2seq::{Seq2Seq, Seq2SeqConfig};
pub use vit::{ViTConfig, ViTForImageClassification};
