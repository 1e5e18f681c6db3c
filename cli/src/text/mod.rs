//! Tokenizers, special tokens and chat templates of model directories.

pub mod chat;
pub mod special;
pub mod tokenizer;
