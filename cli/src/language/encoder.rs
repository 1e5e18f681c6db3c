//! A document as token ids, those marked that the loss is on.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{anyhow, ensure, Context, Result};
use serde_json::{json, Value};
use tokenizers::Tokenizer;

use super::document::Document;
use super::settings::{LanguageData, LossOn};
use super::turns;
use crate::records::keys::is_empty;
use crate::text::chat::{ChatTemplate, Conversation, Rendered, THINKING};
use crate::text::files::TextFiles;
use crate::text::special::eos_ids;
use crate::text::tokenizer;
use crate::train::example::Example;

pub struct TextEncoder {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    /// The chat template renders parts of a content.
    takes_parts: bool,
    eos: Option<u32>,
    loss_on: LossOn,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// For each token, whether the loss is on it.
    pub counted: Vec<bool>,
    /// A rest that does not fit is cut off, rather than made another piece.
    pub whole: bool,
}

impl TextEncoder {
    pub fn open(model: &TextFiles, data: &LanguageData) -> Result<Self> {
        let tokenizer = tokenizer::open(model, None)?;
        let eos = eos_ids(model, &tokenizer)?.first().map(|id| *id as u32);
        let eos = eos.filter(|_| data.append_eos);
        let chat = ChatTemplate::open(model)?;
        let takes_parts = chat.as_ref().is_some_and(takes_parts);
        Ok(TextEncoder { tokenizer, chat, takes_parts, eos, loss_on: data.loss_on })
    }

    /// A plain document.
    pub fn text(&self, text: &str) -> Result<Tokens> {
        let mut ids = self.encode(text, true)?.0;
        self.end(&mut ids);
        Ok(Tokens { counted: vec![true; ids.len()], ids, whole: false })
    }

    pub fn document(&self, document: &Document) -> Result<Tokens> {
        match document {
            Document::Text(text) => self.text(text),
            Document::Completion { prompt, completion } => self.completion(prompt, completion),
            Document::Chat { conversation, replies } => self.chat(conversation, *replies),
        }
    }

    /// The parts of a conversation that its chat template does not read.
    pub fn unread(&self, document: &Document) -> Result<Vec<String>> {
        let (Some(chat), Document::Chat { conversation, .. }) = (&self.chat, document) else {
            return Ok(Vec::new());
        };
        let Conversation { messages, tools, documents, kwargs, .. } = &**conversation;
        let given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !is_empty(value));
        let all = [("tools", given(tools)), ("documents", given(documents))];
        let all = all.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
        let said = messages.iter().filter_map(Value::as_object).flatten();
        let said =
            said.filter(|(key, value)| !is_empty(value) && *key != "role" && *key != "content");
        let said: BTreeSet<&str> = said.map(|(key, _)| key.as_str()).collect();
        let mut unread = Vec::new();
        for name in all.chain(kwargs.keys().map(String::as_str)).chain(said) {
            // Templates get thinking under each of its names.
            let names = if THINKING.contains(&name) { &THINKING[..] } else { &[name] };
            let reads = names.iter().map(|name| chat.reads(conversation, name));
            if !reads.collect::<Result<Vec<bool>>>()?.contains(&true) {
                unread.push(format!("{name} (of the chat template)"));
            }
        }
        Ok(unread)
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Tokens> {
        let (mut ids, ends) = self.encode(&format!("{prompt}{completion}"), true)?;
        // A token on the border belongs to the completion.
        let mut counted: Vec<bool> = ends.iter().map(|end| *end > prompt.len()).collect();
        self.end(&mut ids);
        counted.resize(ids.len(), true);
        // An end that the tokenizer has put there is none of the text.
        if let Some(last) = counted.last_mut().filter(|_| ids.last() == self.eos.as_ref()) {
            *last = true;
        }
        Ok(Tokens { ids, counted, whole: true })
    }

    fn chat(&self, conversation: &Conversation, replies: bool) -> Result<Tokens> {
        let chat = self.chat.as_ref().context(
            "there are messages, and the model has no chat template (tokenizer_config.json, chat_template.jinja, or in a GGUF file \
             'tokenizer.chat_template')",
        )?;
        let Conversation { messages, learned, .. } = conversation;
        let mut conversation = Cow::Borrowed(conversation);
        if !self.takes_parts && messages.iter().any(|message| message["content"].is_array()) {
            conversation.to_mut().messages = turns::joined(messages);
        }
        let (text, replies) = if replies || self.loss_on == LossOn::Assistant {
            let roles = || messages.iter().filter_map(|message| message["role"].as_str());
            ensure!(
                roles().any(|role| role == "assistant"),
                "no message has the role 'assistant', only {}",
                roles().collect::<Vec<_>>().join(", ")
            );
            let Rendered { text, learned } = chat.render_learned(&conversation)?;
            (text, learned)
        } else {
            let reply =
                |(message, learned): (&Value, &bool)| message["role"] != "assistant" || *learned;
            ensure!(
                messages.iter().zip(learned).all(reply),
                "a reply is marked as not learned, and 'data.loss_on' is all: set it to assistant"
            );
            let text = chat.render(&conversation, false)?;
            let all: Range<usize> = 0..text.len();
            (text, vec![all])
        };
        let encoding = self.tokenizer.encode(text, false).map_err(|error| anyhow!(error))?;
        let ids = encoding.get_ids().to_vec();
        // A token on a border belongs to the reply, as in transformers.
        let of_reply = |(start, end): &(usize, usize)| {
            let inside = |reply: &Range<usize>| *start < reply.end || *end <= reply.end;
            replies.iter().any(|reply| reply.start < *end && inside(reply))
        };
        let counted = encoding.get_offsets().iter().map(of_reply).collect();
        Ok(Tokens { ids, counted, whole: true })
    }

    /// Tokens as text, special ones included; `learned` says of each whether the loss is on it.
    pub fn example(&self, place: String, ids: &[i64], learned: &[bool]) -> Result<Example> {
        let mut example = Example::new(place);
        let mut stream = self.tokenizer.decode_stream(false);
        for (id, learned) in ids.iter().zip(learned) {
            if let Some(text) = stream.step(*id as u32).map_err(|error| anyhow!(error))? {
                example.push(&text, *learned);
            }
        }
        Ok(example)
    }

    /// The ids, and the place in the text where each token ends.
    fn encode(&self, text: &str, special: bool) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding = self.tokenizer.encode(text, special).map_err(|error| anyhow!(error))?;
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end);
        Ok((encoding.get_ids().to_vec(), ends.collect()))
    }

    /// Ends a document, if it does not end yet.
    fn end(&self, ids: &mut Vec<u32>) {
        ids.extend(self.eos.filter(|eos| ids.last() != Some(eos)));
    }
}

/// Tries a content in parts: a template that knows none prints the list, or stops.
fn takes_parts(chat: &ChatTemplate) -> bool {
    let message = |role: &str| json!({"role": role, "content": [{"type": "text", "text": format!("<{role}>")}]});
    let roles = ["user", "assistant"];
    let text = chat.render(&Conversation::new(roles.map(message).to_vec()), false);
    text.is_ok_and(|text| {
        let rendered = |role: &&str| text.contains(&format!("<{role}>"));
        roles.iter().all(rendered) && !text.contains("'type'") && !text.contains("\"type\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_completion_is_learned_whoever_puts_it_there() {
        let single = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]);
        let template = json!({
            "type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
        });
        for (post_processor, eos, learned) in [
            (Value::Null, Some(2), &[false, true, true][..]),
            (template.clone(), Some(2), &[false, true, true]),
            (Value::Null, None, &[false, true]),
            (template, None, &[false, true, false]),
        ] {
            let tokenizer = json!({
                "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
                "pre_tokenizer": {"type": "Whitespace"}, "post_processor": post_processor, "decoder": null,
                "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2}, "unk_token": "a"},
            });
            let tokenizer = Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
            let loss_on = LossOn::Assistant;
            let encoder = TextEncoder { tokenizer, chat: None, takes_parts: false, eos, loss_on };
            let tokens = encoder.completion("a ", "b").unwrap();
            assert_eq!(tokens.counted, learned, "{:?}", tokens.ids);
            assert_eq!(tokens.ids, [0, 1, 2][..learned.len()]);
        }
    }
}
