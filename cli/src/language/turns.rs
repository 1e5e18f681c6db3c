//! The messages of a conversation, in the words of OpenAI (`role`, `content`) or of ShareGPT (`from`, `value`).

use anyhow::{anyhow, bail, ensure, Context, Result};
use serde_json::{json, Map, Value};

use super::mentions::{of_part, of_text, Mentions};
use crate::records::shown;

/// Messages as chat templates take them, and for each whether it is learned.
#[derive(Debug, Default, PartialEq)]
pub struct Turns {
    pub messages: Vec<Value>,
    pub learned: Vec<bool>,
    /// The pictures that they speak of.
    pub pictures: Mentions,
}

/// ShareGPT's speakers, and the roles that they have in chat templates.
const SPEAKERS: &[(&str, &[&str])] = &[
    ("system", &["system"]),
    ("user", &["human", "user"]),
    (
        "assistant",
        &["gpt", "assistant", "chatgpt", "bing", "bard", "bot", "ai", "model", "function_call"],
    ),
    ("tool", &["tool", "observation", "function_response"]),
];

/// Keys of a message that say whether it is learned: by true or 1, or by false or 0.
const MARKS: [&str; 8] = [
    "weight",
    "train",
    "training",
    "loss",
    "trainable",
    "train_on_turn",
    "compute_loss",
    "calculate_loss",
];
/// The same, the other way round.
const MASKED: &str = "masked";

/// Keys of a message that would change what is learned.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["image", "images"],
        "pictures are parts of the content, or '<image>' in it, with 'images' beside the messages; and the model must be \
         one of images and texts",
    ),
    (&["audio", "audios", "video", "videos"], "sound and films are not learned from"),
    (
        &["mask", "loss_mask", "loss_weight", "train_detail", "training_detail"],
        "a message is learned or not, by 'weight': 1 or 0",
    ),
];

/// With the marks that stand for pictures in a text, of which there are none where the model takes text alone.
pub fn read(list: Vec<Value>, marks: &[String]) -> Result<Turns> {
    let mut turns = Turns::default();
    for message in list {
        let whole = shown(&message);
        let Value::Object(message) = message else {
            bail!("a message is {whole}, expected an object with 'role' and 'content'");
        };
        let (message, learned) = turn(message, marks, &mut turns.pictures)
            .map_err(|error| anyhow!("{error:#}: {whole}"))?;
        turns.messages.push(message);
        turns.learned.push(learned);
    }
    Ok(turns)
}

impl Turns {
    pub fn append(&mut self, mut other: Turns) {
        self.messages.append(&mut other.messages);
        self.learned.append(&mut other.learned);
        self.pictures.append(&mut other.pictures);
    }

    /// Puts a system message in front.
    pub fn put_system(&mut self, text: String) -> Result<()> {
        let system =
            |message: &&Value| message["role"] == "system" || message["role"] == "developer";
        let first = self.messages.first().filter(system);
        match first.map(|message| &message["content"]) {
            Some(content) if *content == text => {}
            Some(_) => {
                bail!("there is a 'system' and another message of the system: leave out one")
            }
            None => {
                self.messages.insert(0, json!({"role": "system", "content": text}));
                self.learned.insert(0, false);
            }
        }
        Ok(())
    }
}

fn turn(
    mut message: Map<String, Value>,
    marks: &[String],
    pictures: &mut Mentions,
) -> Result<(Value, bool)> {
    message.retain(|key, value| !value.is_null() || key == "content");
    let calls = message.get_mut("tool_calls").map(calls).transpose()?;
    for call in calls.into_iter().flatten().filter_map(Value::as_object_mut) {
        // Null among the arguments is a value.
        call.retain(|_, value| !value.is_null());
        if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
            function.retain(|_, value| !value.is_null());
        }
    }
    for (keys, words) in REFUSED {
        if let Some(key) =
            keys.iter().find(|key| message.get(**key).is_some_and(|v| *v != json!([])))
        {
            bail!("a message has the key '{key}': {words}");
        }
    }
    let mark = mark(&mut message)?;
    let speaker = match message.remove("from") {
        Some(speaker) if !message.contains_key("role") => Some(speaker),
        Some(_) => bail!("a message has both 'role' and 'from'"),
        None => None,
    };
    if let Some(text) = message.remove("value") {
        let content = message.insert("content".into(), text).unwrap_or_default();
        ensure!(content.is_null(), "a message has both 'content' and 'value'");
    }
    if let Some(speaker) = speaker {
        let role = SPEAKERS.iter().find(|(_, names)| names.iter().any(|name| speaker == *name));
        let (role, _) = role.with_context(|| {
            let known: Vec<&str> = SPEAKERS.iter().flat_map(|(_, names)| *names).copied().collect();
            format!("a message is 'from' {speaker}, expected {}", known.join(", "))
        })?;
        message.insert("role".into(), json!(role));
        if speaker == "function_call" {
            call(&mut message)?;
        }
    }
    ensure!(message.get("role").is_some_and(Value::is_string), "a message has no 'role'");
    let learned = message["role"] == "assistant";
    ensure!(
        learned || mark != Some(true),
        "a message is marked as learned, and replies of the assistant alone can be"
    );
    content(&mut message, marks, pictures)?;
    Ok((Value::Object(message), learned && mark != Some(false)))
}

/// The calls of tools, which columns of one kind hold as JSON in a string.
fn calls(calls: &mut Value) -> Result<&mut Vec<Value>> {
    if let Value::String(text) = &*calls {
        *calls = if text.is_empty() {
            json!([])
        } else {
            serde_json::from_str(text).unwrap_or_default()
        };
    }
    match calls {
        Value::Array(list) if list.iter().all(Value::is_object) => Ok(list),
        _ => bail!("the 'tool_calls' of a message are no list of objects"),
    }
}

/// Takes the keys that say whether a message is learned.
fn mark(message: &mut Map<String, Value>) -> Result<Option<bool>> {
    let mut mark = None;
    for key in MARKS.iter().chain(&[MASKED]) {
        let Some(value) = message.remove(*key) else { continue };
        let flag = match (value.as_bool(), value.as_f64()) {
            (Some(flag), _) => flag,
            (_, Some(1.)) => true,
            (_, Some(0.)) => false,
            _ => bail!("'{key}' of a message is {}, expected 1 or 0, true or false", shown(&value)),
        };
        let flag = flag != (*key == MASKED);
        ensure!(
            mark.is_none_or(|mark| mark == flag),
            "two keys of a message say whether it is learned, and '{key}' says something else"
        );
        mark = Some(flag);
    }
    Ok(mark)
}

/// ShareGPT's call of a function: JSON with a name and arguments, or a list of these.
fn call(message: &mut Map<String, Value>) -> Result<()> {
    let text = message.insert("content".into(), json!(""));
    let text = text.as_ref().and_then(Value::as_str).unwrap_or_default();
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => bail!("a 'function_call' is {text}, expected JSON with 'name' and 'arguments'"),
    };
    let call = |call: &Value| {
        ensure!(call["name"].is_string(), "a 'function_call' has no 'name': {}", shown(call));
        Ok(json!({"type": "function", "function": call}))
    };
    message.insert("tool_calls".into(), calls.iter().map(call).collect::<Result<_>>()?);
    Ok(())
}

/// Checks the content: a text, or parts that are texts and pictures, or nothing where something else is said.
fn content(
    message: &mut Map<String, Value>,
    marks: &[String],
    pictures: &mut Mentions,
) -> Result<()> {
    match message.get_mut("content") {
        Some(Value::String(text)) => {
            pictures.extend(of_text(text, marks));
            Ok(())
        }
        Some(Value::Array(parts)) => {
            parts.iter_mut().try_for_each(|one| part(one, marks, pictures))
        }
        Some(Value::Null) | None => {
            let said = ["tool_calls", "function_call", "reasoning_content", "thinking"];
            let silent = said.iter().any(|key| message.contains_key(*key));
            ensure!(silent || message["role"] == "tool", "a message has no 'content'");
            Ok(())
        }
        Some(other) => bail!("the 'content' of a message is {}, expected a string", shown(other)),
    }
}

/// A part of a content: a text, as a string or with its type, or a picture.
fn part(part: &mut Value, marks: &[String], pictures: &mut Mentions) -> Result<()> {
    if let Value::String(text) = part {
        *part = json!({"type": "text", "text": text});
    }
    let sees = !marks.is_empty();
    let picture = if sees { of_part(part, pictures.len())? } else { None };
    if let Some(picture) = picture {
        pictures.push(picture);
        *part = json!({"type": "image"});
        return Ok(());
    }
    let kind = part["type"].as_str();
    let (expected, others) = if sees {
        ("'text' with a 'text', or 'image'", "sound, films and the like are")
    } else {
        ("'text' with a 'text'", "the model takes text alone: pictures, sound and the like are")
    };
    ensure!(
        kind == Some("text") && part["text"].is_string(),
        "a part of a message is of the type '{}', expected {expected}: {others} not learned from",
        kind.unwrap_or("")
    );
    pictures.extend(of_text(part["text"].as_str().unwrap_or_default(), marks));
    *part = json!({"type": "text", "text": part["text"]});
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turns(list: Value) -> Result<Turns> {
        let Value::Array(list) = list else { panic!("{list}") };
        read(list, &[])
    }

    fn refused(message: Value, part: &str) {
        let error = turns(json!([message])).unwrap_err().to_string();
        assert!(error.contains(part), "{message}: '{part}' is not in: {error}");
    }

    #[test]
    fn marks_of_messages_say_what_is_learned() {
        for (key, yes, no) in [
            ("weight", json!(1), json!(0)),
            ("weight", json!(1.0), json!(0.0)),
            ("train", json!(true), json!(false)),
            ("training", json!(true), json!(false)),
            ("loss", json!(true), json!(0)),
            ("trainable", json!(true), json!(false)),
            ("train_on_turn", json!(1), json!(0)),
            ("compute_loss", json!(true), json!(false)),
            ("masked", json!(false), json!(true)),
        ] {
            let message = |mark: &Value| json!({"role": "assistant", "content": "b", key: mark});
            let read = turns(json!([message(&yes), message(&no), message(&Value::Null)])).unwrap();
            assert_eq!(read.learned, [true, false, true], "{key}");
            assert!(read.messages.iter().all(|message| message.get(key).is_none()), "{read:?}");
            let mut user = message(&yes);
            user["role"] = json!("user");
            refused(user, "replies of the assistant alone");
            refused(message(&json!(0.5)), &format!("'{key}' of a message is 0.5, expected 1 or 0"));
        }
        let both = json!({"role": "assistant", "content": "b", "weight": 0, "train": true});
        refused(both, "two keys of a message");
    }

    #[test]
    fn a_call_of_sharegpt_becomes_a_call_of_a_tool() {
        let call = json!({"name": "f", "arguments": {"a": 1}});
        for value in [call.to_string(), json!([call]).to_string()] {
            let read = turns(json!([
                {"from": "function_call", "value": value}, {"from": "observation", "value": "4"},
            ]));
            let read = read.unwrap();
            let calls = json!([{"type": "function", "function": call}]);
            let expected = json!({"role": "assistant", "content": "", "tool_calls": calls});
            assert_eq!(read.messages[0], expected);
            assert_eq!(read.messages[1], json!({"role": "tool", "content": "4"}));
            assert_eq!(read.learned, [true, false]);
        }
        refused(json!({"from": "function_call", "value": "f(1)"}), "expected JSON with 'name'");
    }

    #[test]
    fn calls_in_a_string_are_read_and_others_than_objects_are_refused() {
        let message =
            |calls: Value| json!({"role": "assistant", "content": "b", "tool_calls": calls});
        let calls = json!([{"function": {"name": "f", "arguments": {}}}]);
        let read = |calls: Value| turns(json!([message(calls)])).unwrap();
        assert_eq!(read(json!(calls.to_string())), read(calls));
        assert_eq!(read(json!("")), read(json!([])));
        for calls in [json!("f(1)"), json!({"name": "f"}), json!(["f"]), json!("null")] {
            refused(message(calls), "no list of objects");
        }
    }

    #[test]
    fn messages_that_cannot_be_read_are_refused_with_their_beginning() {
        refused(json!("Hi"), "a message is \"Hi\", expected an object");
        refused(json!({"from": "alien", "value": "a"}), "'from' \"alien\", expected system, human");
        refused(json!({"content": "a"}), "no 'role': {\"content\":\"a\"}");
        refused(json!({"role": "user", "content": null}), "no 'content'");
        refused(
            json!({"role": "user", "content": {"a": 1}}),
            "'content' of a message is {\"a\":1}",
        );
        refused(json!({"role": "user", "from": "gpt", "value": "a"}), "both 'role' and 'from'");
        refused(
            json!({"role": "user", "value": "a", "content": "b"}),
            "both 'content' and 'value'",
        );
        refused(json!({"role": "user", "content": "a", "images": ["x"]}), "'images'");
        for part in ["image", "image_url", "audio", "input_audio", "video"] {
            let content = json!([{"type": "text", "text": "a"}, {"type": part, "url": "x"}]);
            refused(json!({"role": "user", "content": content}), &format!("of the type '{part}'"));
        }
    }

    #[test]
    fn null_in_a_message_is_absent_but_for_the_content_of_a_call() {
        let message = json!({"role": "user", "content": "a", "name": null, "tool_calls": null, "weight": null});
        let read = turns(json!([message])).unwrap();
        assert_eq!(read.messages, [json!({"role": "user", "content": "a"})]);
        let call = |own: Value, call: Value| {
            let mut message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
            message.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
            message
        };
        let function = json!({"name": "f", "arguments": {"a": null}});
        let expected = call(json!({}), json!({"function": function}));
        let mut function = function;
        function["description"] = Value::Null;
        let row = call(json!({"name": null}), json!({"id": null, "function": function}));
        assert_eq!(turns(json!([row])).unwrap().messages, [expected]);
    }

    proptest! {
        #[test]
        fn sharegpt_says_what_openai_says(
            said in prop::collection::vec((0..4_usize, "[a-z ]{0,6}"), 1..6),
        ) {
            let roles = ["system", "user", "assistant", "tool"];
            let speakers = ["system", "human", "gpt", "observation"];
            let ours = said.iter().map(|(who, text)| json!({"role": roles[*who], "content": text}));
            let theirs = said.iter().map(|(who, text)| json!({"from": speakers[*who], "value": text}));
            prop_assert_eq!(turns(ours.collect()).unwrap(), turns(theirs.collect()).unwrap());
        }
    }
}
