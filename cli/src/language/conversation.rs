//! The conversation of a row: its messages, tools and documents.

use anyhow::{anyhow, bail, ensure, Result};
use serde_json::{Map, Value};

use super::shape::{text, Fields};
use super::turns::{self, Turns};
use crate::records::shown;
use crate::text::chat::Conversation;

/// Keys that count in conversations, and cannot be left out elsewhere.
pub const OF_CHATS: [&str; 3] = ["tools", "documents", "chat_template_kwargs"];

/// The messages under a key.
pub fn turns(fields: &mut Fields, key: &str, marks: &[String]) -> Result<Turns> {
    let list = parsed(fields.remove(key).unwrap_or_default(), key)?;
    match list {
        Value::Array(list) if !list.is_empty() => turns::read(list, marks),
        Value::Array(_) => bail!("'{key}' is empty"),
        other => bail!("'{key}' is {}, expected a list of messages", shown(&other)),
    }
}

/// The conversation of messages, and of what goes with them.
pub fn conversation(mut turns: Turns, fields: &mut Fields) -> Result<Box<Conversation>> {
    let system = text(fields, "system")?;
    if !system.is_empty() {
        turns.put_system(system)?;
    }
    let mut list = |key: &str| -> Result<Option<Value>> {
        match fields.remove(key).map(|value| parsed(value, key)).transpose()? {
            None | Some(Value::Null) => Ok(None),
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
    let Turns { messages, learned, .. } = turns;
    Ok(Box::new(Conversation { messages, learned, tools, documents, kwargs }))
}

/// A list or an object, which columns of one kind hold as JSON in a string.
fn parsed(value: Value, key: &str) -> Result<Value> {
    match value {
        Value::String(text) if !text.is_empty() => serde_json::from_str(&text).map_err(|error| {
            let python = text.contains("{'");
            let cure =
                if python { ". This is Python's notation: write it with json.dumps" } else { "" };
            anyhow!("'{key}' is the text {}, expected JSON ({error}){cure}", shown(&text.into()))
        }),
        other => Ok(other),
    }
}
