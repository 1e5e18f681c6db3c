//! Text encoders of BERT's kind, as transformers' `…Model`, `…ForMaskedLM`, `…ForSequenceClassification` and
//! `…ForTokenClassification`.

mod config;
mod families;
mod head;
mod layer;
mod model;

pub use config::EncoderConfig;
pub use model::Encoder;
