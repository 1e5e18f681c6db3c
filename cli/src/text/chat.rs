//! Chat templates: Jinja, as `tokenizer_config.json` or `chat_template.jinja` hold it.

use std::ops::Range;
use std::path::Path;

use anyhow::{bail, Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{context, Environment, Error, ErrorKind, Value as Given};
use serde_json::{Map, Value};

use super::special;

/// All that a template is given: a row of the data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Objects with a `role`.
    pub messages: Vec<Value>,
    /// Of each message, whether the loss may be on it.
    pub learned: Vec<bool>,
    /// JSON schemas of functions.
    pub tools: Option<Value>,
    pub documents: Option<Value>,
    /// `chat_template_kwargs`: variables of the template, such as `enable_thinking`.
    pub kwargs: Map<String, Value>,
}

impl Conversation {
    /// Messages alone. What the assistant says is learned.
    pub fn new(messages: Vec<Value>) -> Self {
        let learned = messages.iter().map(|message| message["role"] == "assistant").collect();
        Conversation { messages, learned, ..Default::default() }
    }
}

/// The text of a conversation, and the parts of it that are learned, as ranges of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pub learned: Vec<Range<usize>>,
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, which templates name.
    tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// `None` where the model has none.
    pub fn open(model: &Path) -> Result<Option<Self>> {
        let config = special::tokenizer_config(model)?;
        let file = model.join("chat_template.jinja");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => named(&config),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read '{}'", file.display()));
            }
        };
        let Some(text) = text else { return Ok(None) };
        let mut environment = Environment::new();
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", text)
            .with_context(|| format!("the chat template of '{}'", model.display()))?;
        let mut tokens = Map::new();
        for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(token) = special::special(&config, name) {
                tokens.insert(name.into(), token.into());
            }
        }
        Ok(Some(ChatTemplate { environment, tokens }))
    }

    /// The text of a conversation; with `open` followed by the head of a reply.
    pub fn render(&self, conversation: &Conversation, open: bool) -> Result<String> {
        self.render_first(conversation, conversation.messages.len(), open)
    }

    /// The text of a conversation, with the messages that are learned told apart.
    pub fn render_learned(&self, conversation: &Conversation) -> Result<Rendered> {
        let text = self.render(conversation, false)?;
        let mut learned = Vec::new();
        for (i, _) in conversation.learned.iter().enumerate().filter(|(_, learned)| **learned) {
            let before = self.render_first(conversation, i, true)?;
            let after = self.render_first(conversation, i + 1, false)?;
            if !text.starts_with(&after) || !after.starts_with(&before) {
                bail!(
                    "the chat template does not render the beginning of a conversation as the beginning of the \
                     whole, so the replies cannot be told apart: set 'data.loss_on' to all"
                );
            }
            learned.push(before.len()..after.len());
        }
        Ok(Rendered { text, learned })
    }

    /// The text of the first messages.
    fn render_first(&self, all: &Conversation, count: usize, open: bool) -> Result<String> {
        let template = self.environment.get_template("chat")?;
        let mut others = self.tokens.clone();
        others.extend(all.kwargs.clone());
        let given = context! {
            messages => Given::from(Serde(&all.messages[..count])),
            tools => Given::from(Serde(&all.tools)),
            documents => Given::from(Serde(&all.documents)),
            add_generation_prompt => open,
            ..Given::from(Serde(others))
        };
        template.render(given).map_err(|error| {
            let detail = error.detail().unwrap_or("").to_owned();
            anyhow::Error::from(error).context(format!("the chat template: {detail}"))
        })
    }
}

fn named(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(templates) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            Some(default.or(templates.first())?["template"].as_str()?.to_owned())
        }
        _ => None,
    }
}
