//! The document that a row stands for: a text, a prompt with its completion, or a conversation.

use std::path::Path;

use anyhow::{bail, Result};
use serde_json::Value;

use super::alpaca;
use super::columns::Columns;
use super::conversation::{conversation, turns, OF_CHATS};
use super::mentions::{of_text, Mentions};
use super::pictures::{self, Picture};
use super::shape::{filled, shape, text, Fields};
use crate::records::keys::{is_empty, left};
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
        conversation: Box<Conversation>,
        replies: bool,
    },
}

/// Everything but the row that says what a row stands for.
pub struct Reading<'r> {
    pub columns: &'r Columns,
    /// The marks that stand for pictures in a text; none where the model takes text alone.
    pub marks: &'r [String],
    /// The folder of the pictures.
    pub images: &'r Path,
}

/// A row that was read.
#[derive(Debug)]
pub struct Read {
    pub document: Document,
    /// The pictures that the document speaks of, in its order.
    pub pictures: Vec<Picture>,
    /// Keys that nobody reads, and that change nothing.
    pub unread: Vec<String>,
}

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
        &[
            "enable_thinking",
            "reasoning_effort",
            "custom_tools",
            "builtin_tools",
            "add_generation_prompt",
            "continue_final_message",
            "chat_template",
        ],
        "variables of the chat template stand in 'chat_template_kwargs'; the template is the model's",
    ),
];

pub fn read(mut row: Row, reading: &Reading) -> Result<Read> {
    let Reading { columns, marks, images } = *reading;
    let keys: Vec<String> =
        row.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.clone()).collect();
    let preferences = ["chosen", "rejected"].iter().all(|key| keys.iter().any(|k| k == key));
    if preferences && !columns.takes("chosen") {
        bail!("there are 'chosen' and 'rejected': {}", REFUSED[0].1);
    }
    let mut fields = columns.take(&mut row);
    let listed = pictures::listed(&mut fields, &mut row, columns, !marks.is_empty())?;
    let shape = shape(&fields, columns, &keys)?;
    // Tables have texts.
    let is_flag = |label: &Value| label.is_boolean() || label == "True" || label == "False";
    if shape[0] == "prompt" && row.get("label").is_some_and(is_flag) {
        bail!(
            "'label' says whether a completion is wished: these are preferences (KTO), which are not trained on. Keep \
             the rows whose label is true, without it"
        );
    }
    let mut mentions = Mentions::new();
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
            let mut turns = turns(&mut fields, "prompt", marks)?;
            turns.learned.fill(false);
            turns.append(self::turns(&mut fields, "completion", marks)?);
            mentions.append(&mut turns.pictures);
            Document::Chat { conversation: conversation(turns, &mut fields)?, replies: true }
        }
        key => {
            let mut turns = turns(&mut fields, key, marks)?;
            mentions.append(&mut turns.pictures);
            Document::Chat { conversation: conversation(turns, &mut fields)?, replies: false }
        }
    };
    match &document {
        Document::Text(text) => mentions = of_text(text, marks),
        Document::Completion { prompt, completion } => {
            mentions.extend([prompt, completion].into_iter().flat_map(|text| of_text(text, marks)));
        }
        Document::Chat { .. } => {}
    }
    let pictures = pictures::matched(mentions, listed, images)?;
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
    let others = fields.iter().filter(|(_, value)| !is_empty(value));
    unread.extend(others.map(|(key, _)| columns.name(key).to_owned()));
    Ok(Read { document, pictures, unread })
}

fn alpaca(fields: &mut Fields) -> Result<Document> {
    let (system, input) = (text(fields, "system")?, text(fields, "input")?);
    let prompt = alpaca::prompt(&filled(fields, "instruction")?, &input, &system);
    Ok(Document::Completion { prompt, completion: filled(fields, "output")? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The names of the sample, with some mapped.
    fn columns(mapped: Value) -> Columns {
        let sample: Value = serde_yaml::from_str(crate::language::SAMPLE).unwrap();
        let mut columns = sample["data"]["columns"].clone();
        for (ours, name) in mapped.as_object().unwrap() {
            columns[ours] = name.clone();
        }
        serde_json::from_value(columns).unwrap()
    }

    fn read_with(row: Value, mapped: Value) -> Result<Read> {
        let Value::Object(row) = row else { panic!("{row}") };
        read(row, &Reading { columns: &columns(mapped), marks: &[], images: Path::new("") })
    }

    fn document(row: Value) -> Document {
        read_with(row, json!({})).unwrap().document
    }

    fn refused(row: Value, parts: &[&str]) {
        let error = format!("{:#}", read_with(row.clone(), json!({})).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{row}: '{part}' is not in: {error}");
        }
    }

    fn chat() -> Value {
        json!([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}])
    }

    #[test]
    fn an_instruction_has_alpacas_prompt() {
        let Document::Completion { prompt, completion } =
            document(json!({"instruction": "Add", "input": "1 2", "output": "3"}))
        else {
            panic!("no completion")
        };
        let begin = "Below is an instruction that describes a task, paired with an input that provides further \
                     context. Write a response that appropriately completes the request.";
        let expected = "\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n";
        assert_eq!((prompt, &*completion), (format!("{begin}{expected}"), "3"));
        let bare = document(json!({"instruction": "Add", "output": "3"}));
        for input in [json!(""), Value::Null] {
            let row = json!({"instruction": "Add", "input": input, "output": "3", "text": null});
            assert_eq!(document(row), bare);
        }
        let system =
            json!({"instruction": "Add", "input": "", "output": "3", "system": "Be brief."});
        let prompt = "Be brief.\n\n### Instruction:\nAdd\n\n### Response:\n".into();
        assert_eq!(document(system), Document::Completion { prompt, completion: "3".into() });
    }

    #[test]
    fn a_conversation_carries_tools_documents_variables_and_the_system_message() {
        let (tools, documents) = (json!([{"type": "function"}]), json!([{"title": "t"}]));
        let row = json!({
            "messages": chat(), "tools": tools, "documents": documents, "system": "Be brief.",
            "chat_template_kwargs": {"enable_thinking": false}, "id": 7, "meta": {},
        });
        let read = read_with(row.clone(), json!({})).unwrap();
        assert_eq!(read.unread, ["id"]);
        let Document::Chat { conversation, replies: false } = &read.document else {
            panic!("{read:?}")
        };
        assert_eq!(conversation.messages[0], json!({"role": "system", "content": "Be brief."}));
        assert_eq!(conversation.learned, [false, false, true]);
        assert_eq!(
            (&conversation.tools, &conversation.documents),
            (&Some(tools), &Some(documents))
        );
        assert_eq!(conversation.kwargs["enable_thinking"], false);
        // Columns of one kind hold lists as JSON in strings.
        let mut strings = row;
        for key in ["messages", "tools", "documents", "chat_template_kwargs"] {
            strings[key] = strings[key].to_string().into();
        }
        assert_eq!(document(strings.clone()), read.document);
        (strings["tools"], strings["documents"]) = (json!("null"), json!(""));
        let Document::Chat { conversation, .. } = document(strings) else { panic!("no chat") };
        assert_eq!((conversation.tools, conversation.documents), (None, None));
    }

    #[test]
    fn of_a_prompt_and_a_completion_in_messages_the_completion_alone_is_learned() {
        let prompt =
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let row = json!({"prompt": prompt, "completion": [{"role": "assistant", "content": "c"}]});
        let Document::Chat { conversation, replies: true } = document(row) else {
            panic!("no chat")
        };
        assert_eq!(conversation.learned, [false, false, true]);
        refused(json!({"prompt": "a", "completion": chat()}), &["'completion' is [{", "a string"]);
    }

    #[test]
    fn names_in_the_settings_map_columns_and_say_which_shape_is_meant() {
        let row = json!({"question": "Q", "answer": "A", "text": "t", "prompt": null});
        let mapped = json!({"prompt": "question", "completion": "answer"});
        let read = read_with(row.clone(), mapped).unwrap();
        let expected = Document::Completion { prompt: "Q".into(), completion: "A".into() };
        assert_eq!((read.document, read.unread), (expected, vec!["text".to_owned()]));
        let row = json!({"question": "Q", "answer": "A"});
        let mapped = json!({"prompt": "questions", "completion": "answer"});
        let error = read_with(row, mapped).unwrap_err().to_string();
        assert!(error.contains("no 'questions'") && error.contains("'question'"), "{error}");
        let both = json!({"text": "t", "instruction": "i", "output": "o"});
        refused(
            both.clone(),
            &["'text', and 'instruction' and 'output'", "data.columns.text=text"],
        );
        let read = read_with(both, json!({"text": "text"})).unwrap();
        assert_eq!(read.document, Document::Text("t".into()));
        // An empty value stands for nothing, where there is something else.
        assert_eq!(document(json!({"text": "t", "messages": []})), Document::Text("t".into()));
    }

    #[test]
    fn rows_that_fit_nothing_are_refused_with_what_they_have() {
        refused(
            json!({"question": "q", "answer": "a"}),
            &["'question', 'answer'", "data.columns.prompt=question"],
        );
        refused(json!({"mesages": []}), &["data.columns.messages=mesages"]);
        refused(json!({"prompt": "a"}), &["there is a 'prompt' and no 'completion'"]);
        refused(json!({"input_ids": [1]}), &["'input_ids'", "expected texts"]);
        refused(json!({"text": null}), &["the row is empty"]);
        refused(json!({"messages": "[{'role': 'user'}]"}), &["expected JSON", "Python's notation"]);
        refused(
            json!({"messages": chat(), "tools": {"a": 1}}),
            &["'tools' is", "a list of objects"],
        );
    }

    #[test]
    fn keys_that_change_what_is_learned_are_refused_by_name() {
        for (key, value) in [
            ("weight", json!(0)),
            ("loss_weight", json!(0.5)),
            ("train", json!(false)),
            ("loss", json!(0)),
            ("mask", json!([1, 0])),
            ("masked", json!([true])),
            ("masked", json!(true)),
            ("mask", json!(1)),
            ("completion_mask", json!([0, 1])),
            ("images", json!(["a.png"])),
            ("audio", json!({"path": "a.wav"})),
            ("labels", json!([1, 2])),
            ("chosen", json!("c")),
            ("rejected", json!("r")),
            ("suffix", json!("s")),
            ("functions", json!([{"name": "f"}])),
            ("system_prompt", json!("s")),
            ("enable_thinking", json!(false)),
            ("enable_thinking", json!(true)),
            ("add_generation_prompt", json!(true)),
        ] {
            for mut row in [
                json!({"text": "t"}),
                json!({"messages": chat()}),
                json!({"prompt": "p", "completion": "c"}),
            ] {
                row[key] = value.clone();
                refused(row.clone(), &[&format!("'{key}' is {}", shown(&value))]);
                // Nothing is changed by null.
                row[key] = Value::Null;
                assert_eq!(read_with(row, json!({})).unwrap().unread, [""; 0], "{key}");
            }
        }
        for key in OF_CHATS.iter().chain(&["system"]) {
            let mut row = json!({"text": "t"});
            row[*key] = json!("x");
            refused(row, &[&format!("'{key}' is \"x\""), "beside 'text'"]);
        }
        refused(json!({"prompt": "p", "completion": "c", "label": true}), &["'label'", "KTO"]);
        refused(
            json!({"prompt": "p", "chosen": "c", "rejected": "r"}),
            &["preferences", "to chosen"],
        );
        let row = json!({"prompt": "p", "chosen": "c", "rejected": "r"});
        let read = read_with(row, json!({"completion": "chosen"})).unwrap();
        assert_eq!(read.unread, ["rejected"]);
    }

    proptest! {
        #[test]
        fn null_for_what_is_absent_changes_nothing(
            shape in prop::sample::select(vec![
                json!({"text": "t"}),
                json!({"prompt": "p", "completion": "c"}),
                json!({"messages": chat()}),
                json!({"instruction": "i", "output": "o"}),
                json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            ]),
            absent in prop::sample::subsequence(
                vec!["text", "prompt", "completion", "messages", "conversations", "instruction", "input", "output",
                    "system", "tools", "documents", "chat_template_kwargs", "images", "weight", "chosen", "id"], 0..16),
        ) {
            let expected = document(shape.clone());
            let mut row = shape;
            for key in absent {
                row.as_object_mut().unwrap().entry(key).or_insert(Value::Null);
            }
            prop_assert_eq!(document(row), expected);
        }
    }
}
