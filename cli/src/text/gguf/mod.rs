//! The words of a GGUF file: the tokenizer and the chat templates in its metadata, as the files of a model directory
//! that they stand for.

mod byte_level;
mod ends;
mod read;
mod sentence_piece;
mod splits;
mod tokenizer;
pub mod vocabulary;
pub mod write;
