//! Tokenizers, special tokens and chat templates of models: directories, or GGUF files.

pub mod chat;
pub mod files;
pub mod gguf;
mod jinja;
mod methods;
mod python;
mod replies;
pub mod special;
pub mod tokenizer;
