//! Encoder-decoder language models, as transformers' `T5ForConditionalGeneration` and `BartForConditionalGeneration`.

mod config;
mod distance;
mod generate;
mod layer;
mod model;
mod stack;

pub use config::Seq2SeqConfig;
pub use model::Seq2Seq;
