//! The contents that a chat template takes, and messages as it takes them.

use serde_json::{json, Value};

use super::mentions::{parted, written};
use super::vision::Vision;
use crate::text::chat::{ChatTemplate, Conversation};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Takes {
    strings: bool,
    /// Texts with their type.
    parts: bool,
    /// Pictures among the parts, for each of which it writes a mark.
    pictures: bool,
}

impl Takes {
    /// Tries each: a template prints what it does not know, or leaves it out, or stops. `mark` is that of a picture.
    pub fn of(chat: &ChatTemplate, mark: Option<&str>) -> Self {
        let tried = |content: &dyn Fn(&str) -> Value| -> Option<String> {
            let roles = ["user", "assistant"];
            let message =
                |role: &str| json!({"role": role, "content": content(&format!("<{role}>"))});
            let text = chat.render(&Conversation::new(roles.map(message).to_vec()), false).ok()?;
            let rendered = roles.iter().all(|role| text.contains(&format!("<{role}>")));
            (rendered && !text.contains("'type'") && !text.contains("\"type\"")).then_some(text)
        };
        let part = |text: &str| json!({"type": "text", "text": text});
        let strings = tried(&|text| text.into());
        let parts = tried(&|text| json!([part(text)]));
        let pictures = mark.and_then(|mark| {
            let picture = |text: &str| match text {
                "<user>" => json!([{"type": "image"}, part(text)]),
                _ => json!([part(text)]),
            };
            Some(tried(&picture)?.matches(mark).count() == 1)
        });
        Takes {
            strings: strings.is_some(),
            parts: parts.is_some(),
            pictures: pictures == Some(true),
        }
    }

    /// The messages as the template takes them, if they are not so already.
    pub fn fitted(self, messages: &[Value], vision: Option<&Vision>) -> Option<Vec<Value>> {
        let (marks, mark) = vision.map_or((Vec::new(), ""), |vision| {
            (vision.tokens.marks(), vision.tokens.written.as_str())
        });
        let fitted = |content: &Value| {
            let shows = match content {
                Value::String(text) => marks.iter().any(|mark| text.contains(mark.as_str())),
                Value::Array(parts) => parts.iter().any(|part| {
                    let text = part["text"].as_str().unwrap_or_default();
                    part["type"] == "image" || marks.iter().any(|mark| text.contains(mark.as_str()))
                }),
                _ => return None,
            };
            match (shows, content.is_array()) {
                (true, _) if self.pictures => Some(parted(content, &marks)),
                (true, _) => Some(written(content, &marks, mark)),
                (false, true) if !self.parts => Some(written(content, &marks, mark)),
                (false, false) if !self.strings && self.parts => Some(parted(content, &marks)),
                _ => None,
            }
        };
        let mut changed = false;
        let mut messages = messages.to_vec();
        for message in &mut messages {
            if let Some(content) = fitted(&message["content"]) {
                changed |= content != message["content"];
                message["content"] = content;
            }
        }
        changed.then_some(messages)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_joined_to_the_text_that_they_were(texts in prop::collection::vec("[a-z\n]{0,4}", 0..4)) {
            let part = |text: &String| json!({"type": "text", "text": text});
            let parts: Vec<Value> = texts.iter().map(part).collect();
            let strings = Takes { strings: true, ..Takes::default() };
            let fitted = strings.fitted(&[json!({"role": "user", "content": parts})], None);
            let expected = vec![json!({"role": "user", "content": texts.concat()})];
            prop_assert_eq!(fitted, Some(expected));
        }
    }
}
