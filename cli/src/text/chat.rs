//! Chat templates: the text of a conversation, as transformers renders it, and what of it is learned.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{anyhow, bail, ensure, Context, Error, Result};
use minijinja::{Environment, ErrorKind, OutputSpan, Value as Given};
use serde_json::{Map, Value};

use super::files::TextFiles;
use super::jinja::{self, GENERATION};
use super::replies::{Replies, Text};
use super::{python, special};

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

/// The keys of a message's thinking.
pub const THINKING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Conversation {
    /// Messages alone. What the assistant says is learned.
    pub fn new(messages: Vec<Value>) -> Self {
        let learned = messages.iter().map(is_reply).collect();
        Conversation { messages, learned, ..Default::default() }
    }
}

fn is_reply(message: &Value) -> bool {
    message["role"] == "assistant"
}

/// The text of a conversation, and the parts of it that are learned, as ranges of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pub learned: Vec<Range<usize>>,
}

/// Bytes of a template. Reading one takes time that grows with the square.
const LONGEST: usize = 1 << 18;

/// The variables and tags that a template uses.
struct Asked {
    /// Variables that are called like special tokens.
    tokens: Vec<String>,
    /// `{% generation %}`
    marks: bool,
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The templates by their names, `default` and `tool_use` among them; or why one cannot be used.
    names: BTreeMap<String, Result<Asked, String>>,
    /// `bos_token` and its like.
    tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// `None` where the model has none. A template that is broken is an error when a conversation needs it.
    pub fn open(model: &TextFiles) -> Result<Option<Self>> {
        Self::of(model, special::chat_templates(model)?)
    }

    /// That of a processor of images and texts, else `usual`, if there is one.
    pub fn of_processor(model: &TextFiles, usual: Option<&str>) -> Result<Option<Self>> {
        let mut templates = special::processor_templates(model)?;
        if let Some(usual) = usual.filter(|_| templates.is_empty()) {
            templates.insert("default".into(), usual.to_owned());
        }
        Self::of(model, templates)
    }

    fn of(model: &TextFiles, templates: BTreeMap<String, String>) -> Result<Option<Self>> {
        let mut environment = jinja::environment();
        let mut names = BTreeMap::new();
        for (name, text) in templates {
            if text.len() > LONGEST {
                let error = format!("it has {} bytes, expected at most {LONGEST}", text.len());
                names.insert(name, Err(error));
                continue;
            }
            let text = jinja::source(&text)?;
            let marks = jinja::without_comments(&text)?.contains(GENERATION);
            let asked = jinja::on_deep_stack(|| {
                let added = environment.add_template_owned(name.clone(), text);
                added.and_then(|()| environment.get_template(&name)).map(|template| {
                    let variables = template.undeclared_variables(false).into_iter();
                    Asked {
                        tokens: variables.filter(|name| name.ends_with("_token")).collect(),
                        marks,
                    }
                })
            })?;
            let asked = asked.map_err(|error| error.to_string());
            names.insert(name, asked);
        }
        if names.is_empty() {
            return Ok(None);
        }
        let tokens = special::special_tokens(model)?;
        Ok(Some(ChatTemplate { environment, names, tokens }))
    }

    /// The template of a conversation names a variable, or a key of messages.
    pub fn reads(&self, conversation: &Conversation, name: &str) -> Result<bool> {
        let template = self.environment.get_template(self.name(conversation)?)?;
        Ok(template.source().contains(name))
    }

    /// The text of a conversation; with `open` followed by the head of a reply.
    pub fn render(&self, conversation: &Conversation, open: bool) -> Result<String> {
        Ok(self.run(conversation, &prepared(&conversation.messages)?, open)?.0)
    }

    /// The text of a conversation, with the messages that are learned told apart: by `{% generation %}` where the
    /// template has it, else by comparing what it makes of changed conversations.
    pub fn render_learned(&self, conversation: &Conversation) -> Result<Rendered> {
        let messages = prepared(&conversation.messages)?;
        let name = self.name(conversation)?;
        let template = self.environment.get_template(name)?;
        let source = template.source();
        let (text, spans) = self.run(conversation, &messages, false)?;
        let is_learned = |place: usize| conversation.learned.get(place) == Some(&true);
        if self.asked(name).is_some_and(|asked| asked.marks) {
            let marked =
                spans.iter().filter(|span| source.get(span.source_range()) == Some(GENERATION));
            let mut learned: Vec<_> = marked.map(OutputSpan::output_range).collect();
            ensure!(
                !learned.is_empty(),
                "the chat template marks nothing of it with {{% generation %}}"
            );
            let replies = (0..messages.len()).filter(|place| is_reply(&messages[*place]));
            let replies: Vec<bool> = replies.map(is_learned).collect();
            if replies.contains(&false) {
                ensure!(
                    replies.len() == learned.len(),
                    "a reply is not learned, and which it is cannot be told: the chat template marks {} parts with \
                     {{% generation %}} of {} replies",
                    learned.len(),
                    replies.len()
                );
                let mut each = replies.into_iter();
                learned.retain(|_| each.next() == Some(true));
            }
            return Ok(Rendered { text, learned });
        }
        let text_of = |(text, spans): (String, Vec<OutputSpan>)| {
            let cuts = spans.iter().map(|span| span.output_range().end).collect();
            Text { text, cuts }
        };
        let render =
            |messages: &[Value], open: bool| self.run(conversation, messages, open).map(text_of);
        let whole = text_of((text, spans));
        let replies = Replies { messages: &messages, render: &render, source, whole: &whole };
        let mut learned: Vec<Range<usize>> = Vec::new();
        for place in (0..messages.len()).filter(|place| is_learned(*place)) {
            let floor = learned.last().map_or(0, |reply| reply.end);
            let reply = replies.find(place, floor).with_context(|| {
                format!(
                    "the chat template rewrites message {}, and what of it is learned cannot be told: mark it with \
                     {{% generation %}} in the template, or set 'data.loss_on' to all",
                    place + 1
                )
            })?;
            learned.push(reply);
        }
        Ok(Rendered { text: whole.text, learned })
    }

    /// The template for a conversation: with tools the one for them, if there is one.
    fn name(&self, conversation: &Conversation) -> Result<&str> {
        let tools = conversation.tools.as_ref().and_then(|_| self.names.get_key_value("tool_use"));
        let found = tools.or_else(|| self.names.get_key_value("default"));
        let (name, asked) = found.with_context(|| {
            let names: Vec<&str> = self.names.keys().map(String::as_str).collect();
            format!("the model has the chat templates {}, and none is 'default'", names.join(", "))
        })?;
        match asked {
            Ok(_) => Ok(name),
            Err(error) => bail!("the chat template '{name}' cannot be read: {error}"),
        }
    }

    fn asked(&self, name: &str) -> Option<&Asked> {
        self.names.get(name)?.as_ref().ok()
    }

    fn run(
        &self,
        all: &Conversation,
        messages: &[Value],
        open: bool,
    ) -> Result<(String, Vec<OutputSpan>)> {
        let name = self.name(all)?;
        let template = self.environment.get_template(name)?;
        objects("tools", all.tools.as_ref())?;
        objects("documents", all.documents.as_ref())?;
        let mut given: BTreeMap<&str, Given> = BTreeMap::new();
        for (name, value) in self.tokens.iter().chain(&all.kwargs) {
            given.insert(name, python::given(value));
        }
        for (name, value) in [
            ("messages", Given::from_iter(messages.iter().map(python::given))),
            ("tools", all.tools.as_ref().map_or(Given::from(()), python::given)),
            ("documents", all.documents.as_ref().map_or(Given::from(()), python::given)),
            ("add_generation_prompt", Given::from(open)),
        ] {
            let given = given.insert(name, value).is_some();
            ensure!(
                !given,
                "'chat_template_kwargs' holds '{name}', which the row or the program gives"
            );
        }
        let missing =
            self.asked(name).into_iter().flat_map(|asked| asked.tokens.iter().map(String::as_str));
        let missing: Vec<&str> = missing.filter(|name| !given.contains_key(name)).collect();
        given.extend(missing.iter().map(|name| (*name, python::Missing::value(name))));
        let rendered =
            jinja::on_deep_stack(|| template.render_with_spans(Given::from_pairs(given)))?;
        let (text, spans) = rendered.map_err(|error| refusal(&error, &missing))?;
        match python::Missing::name_in(&text) {
            Some(name) => Err(undefined_token(name)),
            None => Ok((text, spans)),
        }
    }
}

fn undefined_token(name: &str) -> Error {
    anyhow!(
        "the chat template uses `{name}`, and the tokenizer has none: set \"{name}\" in tokenizer_config.json (to \"\" \
         for nothing)"
    )
}

/// `missing`: tokens that the template asks for, and that nobody gave.
fn refusal(error: &minijinja::Error, missing: &[&str]) -> Error {
    let line = error.line().map_or(String::new(), |line| format!(", line {line}"));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.kind() {
        ErrorKind::OutOfFuel => {
            anyhow!("the chat template{line}: it takes too long or makes too much text, and was stopped")
        }
        // Joined by `+`, as nothing else is of this type.
        ErrorKind::InvalidOperation if detail.contains("plain object") && !missing.is_empty() => {
            undefined_token(&missing.join("`, `"))
        }
        _ => anyhow!("the chat template{line}: {detail}"),
    }
}

fn objects(name: &str, given: Option<&Value>) -> Result<()> {
    let is_list =
        |given: &Value| given.as_array().is_some_and(|all| all.iter().all(Value::is_object));
    match given.filter(|given| !is_list(given)) {
        Some(given) => bail!("'{name}' is {given}, expected a list of objects"),
        None => Ok(()),
    }
}

/// Messages as transformers gives them to a template: without keys that are null, and with thinking under the names
/// that templates read.
fn prepared(messages: &[Value]) -> Result<Vec<Value>> {
    let one = |message: &Value| {
        let message = message.as_object().with_context(|| format!("{message} is no message"))?;
        let all = message.iter().filter(|(_, value)| !value.is_null());
        let all: Map<_, _> = all.map(|(key, value)| (key.clone(), value.clone())).collect();
        let thinking = THINKING.iter().find_map(|key| all.get(*key));
        let Some(thinking) = thinking.cloned() else { return Ok(Value::from(all)) };
        let mut named = Map::new();
        named.insert("thinking".into(), thinking.clone());
        named.extend(all);
        named.insert("reasoning_content".into(), thinking);
        Ok(Value::from(named))
    };
    messages.iter().map(one).collect()
}
