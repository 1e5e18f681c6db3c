//! Tokenizers, special tokens and chat templates of model directories.

pub mod chat;
pub mod files;
mod jinja;
mod methods;
mod python;
mod replies;
pub mod special;
pub mod tokenizer;
