//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.
//!
//! [`Model`] is what they have in common: one way to load, one way to run. [`AnyModel`] is whichever a directory holds.

mod adapter_names;
mod any;
mod config;
mod decoder;
mod encoder;
mod generation;
mod generation_config;
mod inputs;
mod model;
mod multimodal;
mod named_rows;
mod nn;
mod seq2seq;
mod vision;

pub use adapter_names::AdapterNames;
pub use any::AnyModel;
pub use config::{Declared, ModelConfig};
pub use decoder::{Decoder, DecoderConfig};
pub use encoder::{Encoder, EncoderConfig};
pub use generation::GenerateOptions;
pub use inputs::Inputs;
pub use model::{Load, Model};
pub use multimodal::{ImageTextToText, ImageTextToTextConfig};
pub use nn::Weights;
pub use seq2seq::{Seq2Seq, Seq2SeqConfig};
pub use vision::{
    Clip, ClipConfig, ClipText, ClipTextConfig, ClipVision, ClipVisionConfig, Dinov2, Dinov2Config,
    Siglip, SiglipConfig, SiglipText, SiglipTextConfig, SiglipVision, SiglipVisionConfig,
    TowerClassifier, TowerClassifierConfig, ViTConfig, ViTForImageClassification,
};

pub use crate::pretrained::{Form, Frozen, Head, Place};
