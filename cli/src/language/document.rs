//! The document that a row stands for: a text, a prompt with its completion, or a conversation.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Result};
use serde_json::{Map, Value};

use super::alpaca;
use super::columns::Columns;
use super::turns::{self, Turns};
use crate::records::keys::{left, near};
use crate::records::{shown, Row};
use crate::text::chat::Conversation;

#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    Text(String),
    Completion {
        prompt: String,
        completion: String,
    },
    /// With `replies`, the loss is on nothing else, whatever the settings say.
    Chat {
        conversation: Conversation,
        replies: bool,
    },
}

/// A row that was read.
#[derive(Debug)]
pub struct Read {
    pub document: Document,
    /// Keys that nobody reads, and that change nothing.
    pub unread: Vec<String>,
}

type Fields<'c> = BTreeMap<&'c str, Value>;

/// The shapes of rows, by the keys that each must have.
const SHAPES: [&[&str]; 5] = [
    &["text"],
    &["prompt", "completion"],
    &["messages"],
    &["conversations"],
    &["instruction", "output"],
];

/// Keys that count in conversations, and cannot be left out elsewhere.
const OF_CHATS: [&str; 3] = ["tools", "documents", "chat_template_kwargs"];

/// Keys that would change what a language model learns.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["chosen", "rejected"],
        "these are preferences (DPO), which are not trained on. To learn the better answers alone, set \
         data.columns.completion (or data.columns.messages) to chosen",
    ),
    (&["labels"], "tokens with labels are not read. Give the text, or a prompt with its completion"),
    (&["suffix"], "a text is not filled in between a prompt and a suffix. Write it as 'text'"),
    (&["history"], "earlier turns are not read beside an instruction. Write them as 'messages'"),
    (&["functions"], "this is the former name of 'tools': set data.columns.tools, or rename it"),
    (
        &["system_prompt", "system_message"],
        "a system message has the key 'system': set data.columns.system, or rename it",
    ),
    (
        &["enable_thinking", "add_generation_prompt", "chat_template"],
        "variables of the chat template stand in 'chat_template_kwargs'; the template is the model's",
    ),
];

pub fn read(mut row: Row, columns: &Columns) -> Result<Read> {
    let keys: Vec<String> =
        row.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.clone()).collect();
    let mut fields = columns.take(&mut row);
    let shape = shape(&fields, columns, &keys)?;
    if shape[0] == "prompt" && row.get("label").is_some_and(Value::is_boolean) {
        bail!(
            "'label' says whether a completion is wished: these are preferences (KTO), which are not trained on. Keep \
             the rows whose label is true, without it"
        );
    }
    let document = match shape[0] {
        "text" => Document::Text(filled(&mut fields, "text")?),
        "instruction" => alpaca(&mut fields)?,
        "prompt" if fields["prompt"].is_string() || fields["completion"].is_string() => {
            Document::Completion {
                prompt: text(&mut fields, "prompt")?,
                completion: filled(&mut fields, "completion")?,
            }
        }
        "prompt" => {
            let mut turns = turns(&mut fields, "prompt")?;
            turns.learned.fill(false);
            turns.append(self::turns(&mut fields, "completion")?);
            Document::Chat { conversation: conversation(turns, &mut fields)?, replies: true }
        }
        key => {
            let turns = turns(&mut fields, key)?;
            Document::Chat { conversation: conversation(turns, &mut fields)?, replies: false }
        }
    };
    for key in OF_CHATS.iter().chain(&["system"]) {
        if let Some(value) = fields.remove(key).filter(|value| !is_empty(value)) {
            bail!(
                "'{}' is {}, which nothing can be made of beside '{}': write the row as 'messages'",
                columns.name(key),
                shown(&value),
                columns.name(shape[0])
            );
        }
    }
    let refused = if columns.takes("chosen") { &REFUSED[1..] } else { REFUSED };
    let mut unread = left(row, refused)?;
    unread.extend(fields.keys().map(|key| columns.name(key).to_owned()));
    Ok(Read { document, unread })
}

/// The shape of a row. Names in `data.columns` say which one is meant, if there are several.
fn shape(fields: &Fields, columns: &Columns, keys: &[String]) -> Result<&'static [&'static str]> {
    let named = |shape: &&&[&str]| shape.iter().any(|key| columns.mapped(key).is_some());
    let fits = |shape: &&&[&str]| shape.iter().all(|key| fields.contains_key(key));
    let fitting: Vec<_> = SHAPES.iter().filter(fits).collect();
    let meant: Vec<_> = fitting.iter().copied().filter(named).collect();
    let words = |shape: &[&str]| {
        shape.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(" and ")
    };
    match (&*meant, &*fitting) {
        ([shape], _) | ([], [shape]) => return Ok(shape),
        ([_, ..], _) | (_, [_, ..]) => {
            let (first, all) = (fitting[0], fitting.iter().map(|shape| words(shape)));
            bail!(
                "this row fits {}: name the one that is meant, such as data.columns.{1}={1}",
                all.collect::<Vec<_>>().join(", and "),
                first[0]
            )
        }
        ([], []) => {}
    }
    let names = keys.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    let wanted = SHAPES.iter().filter(named).chain(&SHAPES);
    let partly =
        |shape: &&&[&str]| named(shape) || shape.iter().any(|key| fields.contains_key(key));
    for shape in wanted.filter(partly) {
        let found: Vec<&str> =
            shape.iter().copied().filter(|key| fields.contains_key(key)).collect();
        let lacking =
            shape.iter().copied().find(|key| !fields.contains_key(key)).unwrap_or_default();
        let name = columns.name(lacking);
        let near = near(name, keys.iter().filter(|key| !found.contains(&key.as_str())));
        let near = near.map_or(String::new(), |near| format!(" Is it '{near}'?"));
        let there = match found.first() {
            Some(found) => format!("there is a '{}' and no '{name}'", columns.name(found)),
            None => format!("there is no '{name}'"),
        };
        bail!(
            "{there}.{near} The row has {names}; data.columns.{lacking} gives the name of the {lacking}"
        );
    }
    if keys.is_empty() {
        bail!("the row is empty");
    }
    if keys.iter().any(|key| key == "input_ids") {
        bail!(
            "there are tokens ('input_ids') and no texts, expected texts, which are tokenised here"
        );
    }
    if let Some(refused) =
        REFUSED[..1].iter().find(|(all, _)| all.iter().all(|k| keys.iter().any(|key| key == k)))
    {
        bail!("there are 'chosen' and 'rejected': {}", refused.1);
    }
    bail!(
        "there is neither {}. The row has {names}: name its columns, such as data.columns.prompt={} and \
         data.columns.completion={}",
        SHAPES.map(words).join(", nor "),
        keys[0],
        keys.get(1).unwrap_or(&keys[0])
    )
}

fn text(fields: &mut Fields, key: &str) -> Result<String> {
    match fields.remove(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => bail!("'{key}' is {}, expected a string", shown(&other)),
    }
}

fn filled(fields: &mut Fields, key: &str) -> Result<String> {
    let text = text(fields, key)?;
    ensure!(!text.is_empty(), "'{key}' is empty");
    Ok(text)
}

fn alpaca(fields: &mut Fields) -> Result<Document> {
    let (system, input) = (text(fields, "system")?, text(fields, "input")?);
    let prompt = alpaca::prompt(&filled(fields, "instruction")?, &input, &system);
    Ok(Document::Completion { prompt, completion: filled(fields, "output")? })
}

fn turns(fields: &mut Fields, key: &str) -> Result<Turns> {
    let list = parsed(fields.remove(key).unwrap_or_default(), key)?;
    match list {
        Value::Array(list) if !list.is_empty() => turns::read(list),
        Value::Array(_) => bail!("'{key}' is empty"),
        other => bail!("'{key}' is {}, expected a list of messages", shown(&other)),
    }
}

fn conversation(mut turns: Turns, fields: &mut Fields) -> Result<Conversation> {
    let system = text(fields, "system")?;
    if !system.is_empty() {
        turns.put_system(system)?;
    }
    let mut list = |key: &str| -> Result<Option<Value>> {
        match fields.remove(key).map(|value| parsed(value, key)).transpose()? {
            None => Ok(None),
            Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(Some(list.into())),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(other) => bail!("'{key}' is {}, expected a list of objects", shown(&other)),
        }
    };
    let (tools, documents) = (list("tools")?, list("documents")?);
    let kwargs = fields.remove("chat_template_kwargs").unwrap_or_default();
    let kwargs = match parsed(kwargs, "chat_template_kwargs")? {
        Value::Object(kwargs) => kwargs,
        Value::Null => Map::new(),
        other => bail!("'chat_template_kwargs' is {}, expected an object", shown(&other)),
    };
    for key in
        ["messages", "add_generation_prompt", "continue_final_message"].iter().chain(&OF_CHATS)
    {
        ensure!(!kwargs.contains_key(*key), "'{key}' is no variable for 'chat_template_kwargs'");
    }
    let Turns { messages, learned } = turns;
    Ok(Conversation { messages, learned, tools, documents, kwargs })
}

/// A list or an object, which columns of one kind hold as JSON in a string.
fn parsed(value: Value, key: &str) -> Result<Value> {
    match value {
        Value::String(text) if !text.is_empty() => serde_json::from_str(&text).map_err(|_| {
            anyhow::anyhow!("'{key}' is the text {}, expected JSON", shown(&Value::String(text)))
        }),
        other => Ok(other),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
