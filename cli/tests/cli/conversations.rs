//! Conversations and templates, and their texts from the program and from transformers.

use std::path::{Path, PathBuf};

use serde_json::{json, Value};
use tempfile::TempDir;

use crate::common::{root, run_python};
use crate::text::chat::{ChatTemplate, Conversation};
use crate::text::files::TextFiles;

pub fn template(family: &str) -> String {
    let path = format!("cli/tests/cli/templates/{family}.jinja");
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// A directory with the files of a tokenizer of a few tokens.
pub fn tokenizer(files: &[(&str, Value)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let token = |(id, text): (usize, &&str)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    let added: Vec<Value> =
        ["<s>", "</s>", "<pad>", "<image>"].iter().enumerate().map(token).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1, "<pad>": 2, "<image>": 3, "a": 4}, "merges": []},
    });
    for (name, value) in [("tokenizer.json", tokenizer)].iter().chain(files) {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        std::fs::write(path, text).unwrap();
    }
    dir
}

/// A tokenizer with a template, and the tokens that begin and end a text.
pub fn with_template(template: &str) -> TempDir {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "chat_template": template,
    });
    tokenizer(&[("tokenizer_config.json", config)])
}

pub struct Case {
    pub dir: PathBuf,
    pub conversation: Value,
    pub open: bool,
}

impl Case {
    pub fn new(dir: &Path, conversation: &Value, open: bool) -> Self {
        Case { dir: dir.to_owned(), conversation: conversation.clone(), open }
    }

    pub fn conversation(&self) -> Conversation {
        let of = &self.conversation;
        let mut conversation = Conversation::new(of["messages"].as_array().unwrap().clone());
        conversation.tools = of.get("tools").cloned();
        conversation.documents = of.get("documents").cloned();
        conversation.kwargs = of["kwargs"].as_object().cloned().unwrap_or_default();
        conversation
    }

    pub fn ours(&self) -> Result<String, String> {
        self.by(&ChatTemplate::open(&TextFiles::Directory(self.dir.clone())).unwrap().unwrap())
    }

    pub fn by(&self, template: &ChatTemplate) -> Result<String, String> {
        template.render(&self.conversation(), self.open).map_err(|error| format!("{error:#}"))
    }
}

/// The answers of transformers, one for each: the text and the marked parts, or the error.
pub fn theirs(cases: &[Case]) -> Vec<Value> {
    let given = cases.iter().map(|case| {
        let mut given = case.conversation.clone();
        (given["dir"], given["open"]) = (json!(case.dir), json!(case.open));
        given
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cases.json");
    std::fs::write(&file, Value::from_iter(given).to_string()).unwrap();
    serde_json::from_str(&run_python("chat.py", &["render", file.to_str().unwrap()])).unwrap()
}

pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// One and two turns, with a system, tools and their calls, thinking, documents.
pub fn conversations() -> Vec<(&'static str, Value)> {
    let (system, user) =
        (message("system", "You are \"nice\"."), message("user", "Is 2 < 3 & 'so'?"));
    let (reply, more, end) = (
        message("assistant", "Yes, é.\n"),
        message("user", "And 4?"),
        message("assistant", "No.\n\nNever."),
    );
    let thought =
        json!({"role": "assistant", "content": "It is 4.", "reasoning_content": "2 + 2\nis 4."});
    let inside = message("assistant", "<think>\n2 + 2\n</think>\n\nIt is 4.");
    let tools = json!([{"type": "function", "function": {
        "name": "weather", "description": "Wetter: a < b & 'c' \"d\"",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string"}, "unit": {"type": ["string", "null"]}, "kind": {"enum": ["a", "é"]},
            "days": {"type": "array", "items": {"type": "integer"}},
        }},
    }}]);
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{
        "id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {
            "city": "Zürich <1> & 'Genf'", "days": [2, 1.0, 1e-7, 1e20], "ok": true, "none": null, "more": {}, "l": [],
        }},
    }]});
    let result = json!({"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"t\": 3.5}"});
    let documents = json!([{"title": "One \"a\"", "text": "b < c"}, {"title": "Two", "text": "é", "doc_id": 7}]);
    vec![
        ("a question", json!({"messages": [user]})),
        ("one turn", json!({"messages": [user, reply]})),
        ("two turns", json!({"messages": [user, reply, more, end]})),
        ("a system", json!({"messages": [system, user, reply, more, end]})),
        ("thinking", json!({"messages": [user, thought, more, thought]})),
        ("thinking inside", json!({"messages": [user, inside, more, inside]})),
        (
            "thinking off",
            json!({"messages": [user, reply, more, end], "kwargs": {"enable_thinking": false}}),
        ),
        (
            "thinking on",
            json!({"messages": [user, end], "kwargs": {"thinking": true, "date_string": "1 May"}}),
        ),
        ("tools", json!({"messages": [system, user, reply], "tools": tools})),
        ("a call", json!({"messages": [user, call], "tools": tools})),
        (
            "a call and its result",
            json!({"messages": [user, call, result, reply, more, end], "tools": tools}),
        ),
        ("documents", json!({"messages": [user, reply], "documents": documents})),
        ("a system late", json!({"messages": [user, system, user]})),
        ("replies alone", json!({"messages": [reply, end]})),
        (
            "parts",
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": " a "}]}]}),
        ),
    ]
}
