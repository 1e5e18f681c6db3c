//! Models: what they compute is what transformers computes.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;

mod adapter_names;
mod decoder_heads;
mod decoder_loss;
mod decoders;
mod door;
mod encoders;
mod few_bits;
mod frozen;
mod frozen_words;
mod generation;
mod generation_config;
mod gguf;
mod gguf_blocks;
mod gguf_files;
mod gguf_merge;
mod gguf_metadata;
mod gguf_tiny;
#[cfg(all(target_os = "linux", feature = "kernels"))]
mod graph_memory;
mod llava;
mod loading;
mod minilm;
mod naming;
mod nesting;
#[cfg(feature = "kernels")]
mod packed;
mod padding;
mod ropes;
mod seeing;
mod seq2seq;
mod siglip;
mod sizes;
#[cfg(target_os = "linux")]
mod streamed;
mod traced;
mod vision;
mod vit;
