//! A line of the data as token ids, those marked that the loss is on.

use std::ops::Range;
use std::path::Path;

use anyhow::{anyhow, bail, ensure, Context, Result};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::settings::{LanguageData, LossOn};
use crate::text::chat::{ChatTemplate, Conversation, Rendered};
use crate::text::special::{eos_of_model, special_tokens};
use crate::text::tokenizer;
use crate::train::example::Example;

pub struct TextEncoder {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
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
    pub fn open(model: &Path, data: &LanguageData) -> Result<Self> {
        let tokenizer = tokenizer::open(model, None)?;
        let tokens = special_tokens(model)?;
        let eos = tokens.get("eos_token").and_then(|token| tokenizer.token_to_id(token.as_str()?));
        let eos = if data.append_eos {
            eos.or(eos_of_model(model)?.first().map(|id| *id as u32))
        } else {
            None
        };
        Ok(TextEncoder { tokenizer, chat: ChatTemplate::open(model)?, eos, loss_on: data.loss_on })
    }

    /// A plain document.
    pub fn text(&self, text: &str) -> Result<Tokens> {
        let mut ids = self.encode(text, true)?.0;
        self.end(&mut ids);
        Ok(Tokens { counted: vec![true; ids.len()], ids, whole: false })
    }

    /// A line of JSON: `text`, `prompt` and `completion`, or `messages`.
    pub fn json(&self, line: &str) -> Result<Tokens> {
        let value: Value = serde_json::from_str(line).context("this is not JSON")?;
        let field = |key: &str| match value.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => bail!("'{key}' is {other}, expected a string"),
        };
        if let Some(text) = field("text")? {
            ensure!(!text.is_empty(), "'text' is empty");
            return self.text(text);
        }
        if let Some(prompt) = field("prompt")? {
            let completion =
                field("completion")?.context("there is a 'prompt' and no 'completion'")?;
            ensure!(!completion.is_empty(), "'completion' is empty");
            return self.completion(prompt, completion);
        }
        match value.get("messages") {
            Some(Value::Array(messages)) if !messages.is_empty() => self.chat(messages),
            Some(_) => bail!("'messages' is not a list of messages"),
            None => bail!("there is neither 'text', nor 'prompt' and 'completion', nor 'messages'"),
        }
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Tokens> {
        let (mut ids, ends) = self.encode(&format!("{prompt}{completion}"), true)?;
        // A token on the border belongs to the completion.
        let mut counted: Vec<bool> = ends.iter().map(|end| *end > prompt.len()).collect();
        if self.end(&mut ids) {
            counted.push(true);
        }
        Ok(Tokens { ids, counted, whole: true })
    }

    fn chat(&self, messages: &[Value]) -> Result<Tokens> {
        for message in messages {
            let is_text = |key: &str| message.get(key).is_some_and(Value::is_string);
            ensure!(is_text("role"), "a message has no 'role': {message}");
            let silent = message.get("tool_calls").is_some() || message["role"] == "tool";
            ensure!(silent || is_text("content"), "a message has no 'content': {message}");
        }
        let chat = self.chat.as_ref().context(
            "there are 'messages', and the model has no chat template (tokenizer_config.json, chat_template.jinja)",
        )?;
        let conversation = Conversation::new(messages.to_vec());
        let (text, replies) = match self.loss_on {
            LossOn::Assistant => {
                let Rendered { text, learned } = chat.render_learned(&conversation)?;
                (text, learned)
            }
            LossOn::All => {
                let text = chat.render(&conversation, false)?;
                let all: Range<usize> = 0..text.len();
                (text, vec![all])
            }
        };
        ensure!(!replies.is_empty(), "no message has the role 'assistant'");
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
    fn end(&self, ids: &mut Vec<u32>) -> bool {
        match self.eos {
            Some(eos) if ids.last() != Some(&eos) => {
                ids.push(eos);
                true
            }
            _ => false,
        }
    }
}
