//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.
//!
//! [`Model`] is what they have in common: one way to load, one way to run. [`AnyModel`] is whichever a directory holds.
//!
//! # Traces
//! `tch::CModule::create_by_tracing` makes a TorchScript module of a model, which runs where this crate is not. It gives
//! for other inputs of the same shapes what the model gives:
//! ```
//! # use tch::{nn::VarStore, CModule, Device, Tensor};
//! use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
//! # let config = serde_json::json!({"model_type": "llama", "vocab_size": 20, "hidden_size": 8,
//! #     "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2});
//! # let config = DecoderConfig::from_value(&config)?;
//! let mut vs = VarStore::new(Device::Cpu);
//! let model = Decoder::new(&vs.root(), &config)?;
//! vs.freeze(); // a trace takes no tensors that train
//! let ids = Tensor::from_slice2(&[[1_i64, 2, 3]]);
//! let mut logits = |of: &[Tensor]| vec![model.logits(&of[0]).expect("logits")];
//! let module = CModule::create_by_tracing("llama", "forward", &[ids], &mut logits)?;
//! let others = Tensor::from_slice2(&[[7_i64, 8, 9]]);
//! assert!(module.forward_ts(&[&others])?.allclose(&model.logits(&others)?, 1e-5, 1e-5, false));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! Shapes, adapters and their rows are those of the trace. It uses libtorch's operators, where the crate has functions of
//! its own. Generation, losses, matrices in few bits and images of any size are refused (`Unsupported`): their numbers are
//! read by the host, or TorchScript lacks an operator. In closures of your own, make no tensors of numbers, as
//! `Tensor::from_slice` does: tch writes the numbers behind the trace's back, which has zeros. Make them before.

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
