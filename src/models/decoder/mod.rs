//! Decoder-only language models, as transformers' `…ForCausalLM`.

mod ahead;
mod bases;
mod config;
mod context;
mod defaults;
mod families;
mod family;
mod form;
mod generate;
mod head;
mod layer;
mod loss;
mod model;
mod per_layer;
mod read;
mod rope_types;
mod ropes;
mod variants;

pub use config::DecoderConfig;
pub use model::Decoder;
