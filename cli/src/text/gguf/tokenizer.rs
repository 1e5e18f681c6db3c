//! The files of a model directory that a vocabulary stands for.

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use serde_json::{json, Map, Value};

use super::vocabulary::{Vocabulary, CONTROL, UNKNOWN, USER_DEFINED};
use super::{byte_level, ends, sentence_piece};

impl Vocabulary {
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// If there is no way to write this tokenizer so.
    pub fn tokenizer(&self) -> Result<Value> {
        self.check()?;
        let parts = match self.model.as_str() {
            "gpt2" => byte_level::parts(self)?,
            "llama" => sentence_piece::parts(self)?,
            model => bail!(
                "the tokenizer is of the kind 'tokenizer.ggml.model' = '{model}', expected gpt2 or llama"
            ),
        };
        let mut all = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens(), "post_processor": self.post_processor(),
        });
        if let (Value::Object(all), Value::Object(parts)) = (&mut all, parts) {
            all.extend(parts);
        }
        Ok(all)
    }

    /// `tokenizer_config.json`.
    pub fn tokenizer_config(&self) -> Value {
        let mut config = Map::new();
        for (name, id) in &self.special {
            config.extend(self.tokens.get(*id).map(|token| ((*name).to_owned(), json!(token))));
        }
        config.insert("add_bos_token".into(), json!(self.adds_bos()));
        config.insert("add_eos_token".into(), json!(self.adds_eos()));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        match &self.templates[..] {
            [] => {}
            [(name, template)] if name == "default" => {
                config.insert("chat_template".into(), json!(template));
            }
            several => {
                let one = |(name, template): &(String, String)| json!({"name": name, "template": template});
                config.insert("chat_template".into(), several.iter().map(one).collect());
            }
        }
        Value::Object(config)
    }

    /// `generation_config.json`.
    pub fn generation_config(&self) -> Value {
        let ends = ends::ids(self);
        let id = |name: &str| self.id(name);
        json!({"bos_token_id": id("bos_token"), "eos_token_id": ends, "pad_token_id": id("pad_token")})
    }

    /// Tokens that are found in a text before anything else.
    fn added_tokens(&self) -> Vec<Value> {
        let mut added: BTreeMap<usize, bool> = BTreeMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            match self.token_type(id) {
                Some(CONTROL | UNKNOWN) => added.insert(id, true),
                // Words of Gemma that are only spaces are merged from spaces.
                Some(USER_DEFINED)
                    if !token.chars().all(|letter| letter == ' ') || self.model == "gpt2" =>
                {
                    added.insert(id, false)
                }
                _ => None,
            };
        }
        added.extend(self.special.iter().map(|(_, id)| (*id, true)));
        // As llama.cpp tells them; nothing in the file does.
        let name = self.name.to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let one = |(id, special): (usize, bool)| {
            let content = &self.tokens[id];
            let rstrip = phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&content.as_str());
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": rstrip,
                "normalized": false, "special": special,
            })
        };
        added.into_iter().map(one).collect()
    }

    /// The first and last token of a text.
    fn post_processor(&self) -> Value {
        let token = |wanted: bool, name: &str| {
            let id = self.id(name).filter(|_| wanted)?;
            Some((id, &self.tokens[id]))
        };
        let bos = token(self.adds_bos(), "bos_token");
        let eos = token(self.adds_eos(), "eos_token");
        let special = |of: Option<(usize, &String)>, of_text: i64| {
            of.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": of_text}}))
        };
        let text = |name: &str, of_text: i64| {
            let words = json!({"Sequence": {"id": name, "type_id": of_text}});
            [special(bos, of_text), Some(words), special(eos, of_text)].into_iter().flatten()
        };
        let single: Vec<Value> = text("A", 0).collect();
        let pair: Vec<Value> = text("A", 0).chain(text("B", 1)).collect();
        let all: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(id, token)| {
                (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}))
            })
            .collect();
        if all.is_empty() {
            return Value::Null;
        }
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": all})
    }

    fn adds_bos(&self) -> bool {
        let usual = || if self.model == "llama" { true } else { byte_level::adds_bos(self) };
        self.id("bos_token").is_some() && self.add_bos.unwrap_or_else(usual)
    }

    fn adds_eos(&self) -> bool {
        self.id("eos_token").is_some() && self.add_eos == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use tokenizers::Tokenizer;

    use super::*;

    /// Few letters, so that tokens and merges meet; of every kind that is treated apart.
    fn token() -> impl Strategy<Value = String> {
        "[ab \u{2581}\u{120}<é]{0,3}"
    }

    fn words() -> impl Strategy<Value = Vocabulary> {
        let models = prop_oneof!["gpt2", "llama", "bert"];
        let lists = (vec(token(), 0..12), vec(0..8_i64, 0..12), vec(-9_f32..0., 0..12));
        let merges = option::of(vec("[ab ]{0,2} [ab ]{0,2}", 0..6));
        let ids = (option::of(0..14_usize), option::of(0..14_usize), vec(0..14_usize, 0..2));
        let flags = (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>());
        let names = (prop_oneof!["gemma2", "phi3", "llama"], option::of("(gpt-2|llama-bpe|none)"));
        (models, lists, merges, ids, flags, names).prop_map(|all| {
            let (model, (tokens, mut types, mut scores), merges, ids, flags, names) = all;
            let ((bos, unk, ends), (architecture, pre)) = (ids, names);
            // Mostly of one length.
            types.resize(if types.len() == 3 { 3 } else { tokens.len() }, 1);
            scores.resize(if scores.len() == 3 { 3 } else { tokens.len() }, -1.);
            let special = [("bos_token", bos), ("eos_token", bos), ("unk_token", unk)];
            let special = special.into_iter().filter_map(|(name, id)| Some((name, id?))).collect();
            let (add_bos, add_eos, add_space_prefix) = flags;
            let name = architecture.clone();
            #[rustfmt::skip]
            let words = Vocabulary {
                architecture, name, model, pre, tokens, scores, types, merges, special, ends, add_bos, add_eos,
                add_space_prefix, templates: Vec::new(),
            };
            words
        })
    }

    proptest! {
        #[test]
        fn a_vocabulary_is_a_tokenizer_that_keeps_its_ids_or_it_is_refused(words in words()) {
            let _ = (words.tokenizer_config(), words.generation_config());
            let Ok(json) = words.tokenizer() else { return Ok(()) };
            let Ok(tokenizer) = Tokenizer::from_bytes(json.to_string()) else { return Ok(()) };
            for (id, token) in words.tokens.iter().enumerate().filter(|(_, token)| token.trim() != "") {
                prop_assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
            }
            let encoded = tokenizer.encode("ab <a é", true).unwrap();
            prop_assert!(encoded.get_ids().iter().all(|id| (*id as usize) < words.tokens.len()));
        }
    }
}
