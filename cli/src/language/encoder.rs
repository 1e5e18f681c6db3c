//! A document as token ids, those marked that the loss is on.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{anyhow, ensure, Context, Result};
use ln_tuning::pretrained::ModelFiles;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::document::Document;
use super::image_tokens::{Expanded, Grid, ImageTokens};
use super::mentions;
use super::pictures::Picture;
use super::settings::LossOn;
use super::sizes::Sizes;
use super::takes::Takes;
use super::vision::Vision;
use crate::records::keys::is_empty;
use crate::text::chat::{ChatTemplate, Conversation, Rendered, THINKING};
use crate::text::files::TextFiles;
use crate::text::special::{eos_ids, special_tokens};
use crate::text::tokenizer;
use crate::train::example::Example;

pub struct TextEncoder {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    takes: Takes,
    eos: Option<u32>,
    loss_on: LossOn,
    /// None for a model that takes text alone.
    pub vision: Option<Vision>,
    /// The token that a text begins with: the tokenizer's, for a model that sees.
    bos: Option<String>,
}

/// A text to go on with, or messages to reply to.
pub enum Prompt {
    Text(String),
    Chat(Vec<Value>),
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// For each token, whether the loss is on it.
    pub counted: Vec<bool>,
    /// A rest that does not fit is cut off, rather than made another piece.
    pub whole: bool,
    /// The place behind the last token of a picture; 0 where there is none.
    pub seen: usize,
}

/// A text as tokens, with those of pictures in the place of their marks.
struct Encoded {
    ids: Vec<u32>,
    /// The bytes of each.
    places: Vec<Range<usize>>,
    expanded: Expanded,
}

impl TextEncoder {
    pub fn open(
        files: &ModelFiles,
        words: &TextFiles,
        append_eos: bool,
        loss_on: LossOn,
    ) -> Result<Self> {
        let tokenizer = tokenizer::open(words, None)?;
        let eos = eos_ids(words, &tokenizer)?.first().map(|id| *id as u32);
        let eos = eos.filter(|_| append_eos);
        let vision = Vision::open(files, words, &tokenizer)?;
        let chat = match &vision {
            Some(vision) => vision.chat_template(words)?,
            None => ChatTemplate::open(words)?,
        };
        let mark = vision.as_ref().map(|vision| vision.tokens.mark.as_str());
        let takes = chat.as_ref().map_or(Takes::default(), |chat| Takes::of(chat, mark));
        let bos =
            special_tokens(words)?.get("bos_token").and_then(Value::as_str).map(str::to_owned);
        Ok(TextEncoder { tokenizer, chat, takes, eos, loss_on, vision, bos })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// The largest id that needs an embedding.
    pub fn largest_id(&self, ids: &[u32]) -> Option<u32> {
        // Pictures give their own.
        let image = self.vision.as_ref().map(|vision| vision.tokens.id);
        ids.iter().copied().filter(|id| Some(*id) != image).max()
    }

    /// The marks that stand for pictures in data.
    pub fn marks(&self) -> Vec<String> {
        self.vision.as_ref().map_or(Vec::new(), |vision| vision.tokens.marks())
    }

    /// The rows and columns that pictures are cut into, found in this way.
    pub fn grids(
        &self,
        pictures: &[Picture],
        of: impl Fn(&Vision, &Picture) -> Result<Grid>,
    ) -> Result<Vec<Grid>> {
        let vision = || self.vision.as_ref().context("the model takes text alone");
        pictures.iter().map(|picture| of(vision()?, picture)).collect()
    }

    /// The sizes of pictures of these grids beside their pixels, if the model must know them.
    pub fn sizes(&self, grids: &[Grid]) -> Result<Sizes> {
        self.vision.as_ref().map_or(Ok(Sizes::default()), |vision| Sizes::of(&vision.tokens, grids))
    }

    /// True if the model takes several documents in a row.
    pub fn packs(&self) -> bool {
        let in_patches = |vision: &Vision| vision.tokens.needs_sizes() == Some(true);
        !self.vision.as_ref().is_some_and(in_patches)
    }

    /// A plain document.
    pub fn text(&self, text: &str, grids: &[Grid]) -> Result<Tokens> {
        let mut encoded = self.encode(&self.marked(text), true, grids, false)?;
        self.end(&mut encoded.ids);
        let all = vec![true; encoded.ids.len()];
        Ok(self.tokens(encoded, all, !grids.is_empty()))
    }

    /// `grids`: how each picture of the document is cut into tiles.
    pub fn document(&self, document: &Document, grids: &[Grid]) -> Result<Tokens> {
        match document {
            Document::Text(text) => self.text(text, grids),
            Document::Completion { prompt, completion } => {
                self.completion(prompt, completion, grids)
            }
            Document::Chat { conversation, replies } => self.chat(conversation, *replies, grids),
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

    fn completion(&self, prompt: &str, completion: &str, grids: &[Grid]) -> Result<Tokens> {
        let prompt = self.marked(prompt);
        let text = format!("{prompt}{}", self.marked(completion));
        let mut encoded = self.encode(&text, true, grids, false)?;
        // A token on the border belongs to the completion.
        let border = encoded.expanded.moved(&(0..prompt.len())).end;
        let mut counted: Vec<bool> =
            encoded.places.iter().map(|place| place.end > border).collect();
        self.end(&mut encoded.ids);
        counted.resize(encoded.ids.len(), true);
        // An end that the tokenizer has put there is none of the text.
        if let Some(last) = counted.last_mut().filter(|_| encoded.ids.last() == self.eos.as_ref()) {
            *last = true;
        }
        Ok(self.tokens(encoded, counted, true))
    }

    fn chat(&self, conversation: &Conversation, replies: bool, grids: &[Grid]) -> Result<Tokens> {
        let chat = self.chat.as_ref().context(
            "there are messages, and the model has no chat template (tokenizer_config.json, chat_template.jinja, or in a GGUF file \
             'tokenizer.chat_template')",
        )?;
        let Conversation { messages, learned, .. } = conversation;
        let mut fitted = Cow::Borrowed(conversation);
        if let Some(messages) = self.takes.fitted(messages, self.vision.as_ref()) {
            fitted.to_mut().messages = messages;
        }
        let (text, replies) = if replies || self.loss_on == LossOn::Assistant {
            let roles = || messages.iter().filter_map(|message| message["role"].as_str());
            ensure!(
                roles().any(|role| role == "assistant"),
                "no message has the role 'assistant', only {}",
                roles().collect::<Vec<_>>().join(", ")
            );
            let Rendered { text, learned } = chat.render_learned(&fitted)?;
            (text, learned)
        } else {
            let reply =
                |(message, learned): (&Value, &bool)| message["role"] != "assistant" || *learned;
            ensure!(
                messages.iter().zip(learned).all(reply),
                "a reply is marked as not learned, and 'data.loss_on' is all: set it to assistant"
            );
            let text = chat.render(&fitted, false)?;
            let all: Range<usize> = 0..text.len();
            (text, vec![all])
        };
        let encoded = self.encode(&text, self.begins(&text), grids, true)?;
        let replies: Vec<Range<usize>> =
            replies.iter().map(|reply| encoded.expanded.moved(reply)).collect();
        // A token on a border belongs to the reply, as in transformers.
        let of_reply = |token: &Range<usize>| {
            let inside = |reply: &Range<usize>| token.start < reply.end || token.end <= reply.end;
            replies.iter().any(|reply| reply.start < token.end && inside(reply))
        };
        let counted = encoded.places.iter().map(of_reply).collect();
        Ok(self.tokens(encoded, counted, true))
    }

    /// The ids of a prompt: a text, or the messages of a chat, to which a reply is wanted.
    pub fn prompt(&self, prompt: &Prompt, grids: &[Grid]) -> Result<Vec<u32>> {
        let encoded = match prompt {
            Prompt::Text(text) => self.encode(&self.marked(text), true, grids, false)?,
            Prompt::Chat(messages) => {
                let chat = self.chat.as_ref().context("the model has no chat template")?;
                let fitted = self.takes.fitted(messages, self.vision.as_ref());
                let messages = fitted.unwrap_or_else(|| messages.clone());
                let text = chat.render(&Conversation::new(messages), true)?;
                self.encode(&text, self.begins(&text), grids, true)?
            }
        };
        Ok(encoded.ids)
    }

    /// The tokenizer puts its own tokens around a text that a template wrote. transformers' processors have it so, and
    /// its tokenizers do not.
    fn begins(&self, text: &str) -> bool {
        let begun = |bos: &String| text.starts_with(bos.as_str());
        self.vision.is_some() && !self.bos.as_ref().is_some_and(begun)
    }

    /// No loss is on a picture.
    fn tokens(&self, encoded: Encoded, mut counted: Vec<bool>, whole: bool) -> Tokens {
        let Encoded { ids, places, expanded } = encoded;
        let image = self.vision.as_ref().map(|vision| vision.tokens.id);
        let mut seen = 0;
        for (at, (place, id)) in places.iter().zip(&ids).enumerate() {
            let inside = |picture: &Range<usize>| {
                picture.start <= place.start && place.end <= picture.end && !place.is_empty()
            };
            if Some(*id) == image || expanded.pictures.iter().any(inside) {
                counted[at] = false;
                seen = at + 1;
            }
        }
        Tokens { ids, counted, whole, seen }
    }

    /// Tokens as text, special ones included; `learned` says of each whether the loss is on it.
    pub fn example(&self, place: String, ids: &[i64], learned: &[bool]) -> Result<Example> {
        let mut example = Example::new(place);
        let mut stream = self.tokenizer.decode_stream(false);
        let image = self.vision.as_ref().map(|vision| i64::from(vision.tokens.id));
        let mut times = 0;
        for (at, (id, learned)) in ids.iter().zip(learned).enumerate() {
            // Those of a picture are counted, rather than shown one by one.
            times = if Some(*id) == image { times + 1 } else { 0 };
            let text = stream.step(*id as u32).map_err(|error| anyhow!(error))?;
            if let Some(text) = text.filter(|_| times < 2) {
                example.push(&text, *learned);
            }
            if times > 1 && ids.get(at + 1) != Some(id) {
                example.push(&format!(" × {times}"), *learned);
            }
        }
        Ok(example)
    }

    /// A text with the mark of the model where a mark is.
    fn marked<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match &self.vision {
            Some(vision) => {
                mentions::marked(text, &vision.tokens.marks(), &vision.tokens.written).into()
            }
            None => text.into(),
        }
    }

    /// The tokens of a text, those of the tokenizer around it if `special` says so.
    fn encode(&self, text: &str, special: bool, grids: &[Grid], template: bool) -> Result<Encoded> {
        let expanded = match &self.vision {
            Some(vision) => vision.tokens.expand(text, grids, template)?,
            None => Expanded::plain(text),
        };
        let encoding = self.tokenizer.encode(expanded.text.as_str(), special);
        let encoding = encoding.map_err(|error| anyhow!(error))?;
        let ids = encoding.get_ids().to_vec();
        if let Some(ImageTokens { id, token, .. }) =
            self.vision.as_ref().map(|vision| &vision.tokens)
        {
            let found = ids.iter().filter(|found| *found == id).count();
            ensure!(
                found == expanded.count,
                "the text has {found} tokens '{token}', and its pictures take {}: write pictures as '{}'",
                expanded.count,
                mentions::MARK
            );
        }
        let places = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok(Encoded { ids, places, expanded })
    }

    /// Ends a document, if it does not end yet.
    fn end(&self, ids: &mut Vec<u32>) {
        ids.extend(self.eos.filter(|eos| ids.last() != Some(eos)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            let (takes, loss_on) = (Takes::default(), LossOn::Assistant);
            let (chat, vision, bos) = (None, None, None);
            let encoder = TextEncoder { tokenizer, chat, takes, eos, loss_on, vision, bos };
            let tokens = encoder.completion("a ", "b", &[]).unwrap();
            assert_eq!(tokens.counted, learned, "{:?}", tokens.ids);
            assert_eq!(tokens.ids, [0, 1, 2][..learned.len()]);
        }
    }
}
