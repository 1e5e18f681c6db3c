//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.

mod activation;
mod any;
mod clip;
mod decoder;
mod dinov2;
mod encoder;
mod fields;
mod generation;
mod multi_head;
mod parts;
mod pre_norm;
mod self_attention;
mod seq2seq;
mod vit;
mod weights;

pub use any::AnyModel;
pub use clip::{Clip, ClipConfig};
pub use decoder::{Decoder, DecoderConfig, Inputs};
pub use dinov2::{Dinov2, Dinov2Config};
pub use encoder::{Encoder, EncoderConfig, EncoderHead};
pub use generation::GenerateOptions;
pub use seq2seq::{Seq2Seq, Seq2SeqConfig};
pub use vit::{ViTConfig, ViTForImageClassification};
