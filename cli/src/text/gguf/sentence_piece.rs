//! SentencePiece with merges (`llama`): the tokenizer of Llama 2, Mistral, Phi 3 and Gemma.

use std::cmp::Ordering;
use std::collections::HashMap;

use anyhow::{ensure, Result};
use serde_json::{json, Value};

use super::vocabulary::Vocabulary;

/// A space in a token.
const SPACE: &str = "\u{2581}";

pub fn parts(words: &Vocabulary) -> Result<Value> {
    let gemma = words.architecture.starts_with("gemma");
    let words = &if gemma { respelled(words) } else { words.clone() };
    let pairs = match words.pairs() {
        Some(pairs) => pairs?,
        None => pairs_of(words, gemma)?,
    };
    let prefix = words.add_space_prefix.unwrap_or(!gemma);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let front = json!({"type": "Prepend", "prepend": SPACE});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false});
    let (normalizer, pre_tokenizer) = match (gemma || words.architecture == "phi3", prefix) {
        (true, true) => (json!({"type": "Sequence", "normalizers": [front, spaces]}), Value::Null),
        (true, false) => (spaces, Value::Null),
        (false, true) => (Value::Null, metaspace("first")),
        (false, false) => (Value::Null, metaspace("never")),
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = words.id("unk_token").map(|id| &words.tokens[id]);
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": words.ids(), "merges": pairs,
        },
    }))
}

/// Gemma's files have tokens of several spaces as spaces, where the merges need their own letter for a space.
fn respelled(words: &Vocabulary) -> Vocabulary {
    let mut words = words.clone();
    for token in &mut words.tokens {
        if !token.is_empty() && token.chars().all(|letter| letter == ' ') {
            *token = token.replace(' ', SPACE);
        }
    }
    words
}

/// The merges that make the tokens: two tokens for each that makes another, those of the best score first. Gemma's
/// scores are no order of merges, but the places of its tokens are.
fn pairs_of(words: &Vocabulary, by_place: bool) -> Result<Vec<(&str, &str)>> {
    ensure!(
        by_place || !words.scores.is_empty(),
        "there are neither 'tokenizer.ggml.merges' nor 'tokenizer.ggml.scores'"
    );
    let places: HashMap<&str, usize> =
        words.tokens.iter().enumerate().map(|(place, token)| (token.as_str(), place)).collect();
    let mut pairs = Vec::new();
    for (place, token) in words.tokens.iter().enumerate() {
        let score = if by_place { -(place as f64) } else { f64::from(words.scores[place]) };
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at)).enumerate();
        let letters = token.chars().count();
        for (cut, (left, right)) in cuts {
            if let (Some(a), Some(b)) = (places.get(left), places.get(right)) {
                pairs.push((score, cut + 1, letters - cut - 1, place, *a, *b, left, right));
            }
        }
    }
    pairs.sort_by(|x, y| {
        let scores = y.0.partial_cmp(&x.0).unwrap_or(Ordering::Equal);
        scores.then(y.1.cmp(&x.1)).then(y.2.cmp(&x.2)).then((x.3, x.4, x.5).cmp(&(y.3, y.4, y.5)))
    });
    Ok(pairs.into_iter().map(|pair| (pair.6, pair.7)).collect())
}
