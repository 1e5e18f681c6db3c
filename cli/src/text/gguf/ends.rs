//! The tokens that an answer ends with.

use super::vocabulary::{Vocabulary, CONTROL, USER_DEFINED};

/// Ends of a turn or of a text in the vocabularies of many models: files often name one of two.
const ENDS: [&str; 12] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<eos>",
];

/// The end that the file names first, then the ends of turns.
pub fn ids(words: &Vocabulary) -> Vec<usize> {
    let mut ids: Vec<usize> = words.id("eos_token").into_iter().chain(words.ends.clone()).collect();
    for (id, token) in words.tokens.iter().enumerate() {
        let control = matches!(words.token_type(id), Some(CONTROL | USER_DEFINED));
        if control && ENDS.contains(&token.as_str()) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}
