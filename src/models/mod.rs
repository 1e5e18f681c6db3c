//! Models written with tch under the variable names that transformers has in memory, so that PEFT's adapters fit.

mod vit;

pub use vit::{ViTConfig, ViTForImageClassification};
