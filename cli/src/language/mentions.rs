//! Pictures that the text of a row speaks of: parts of messages, or marks such as `<image>` in a text.

use anyhow::{bail, ensure, Result};
use serde_json::{json, Value};

use crate::records::shown;

/// The mark of LLaVA's data.
pub const MARK: &str = "<image>";

/// Keys of a part that give its picture, as transformers takes them.
const KEYS: [&str; 4] = ["image", "url", "path", "base64"];

/// The pictures that a text or a part of a message speaks of, in their order: none for one that the row lists.
pub type Mentions = Vec<Option<Value>>;

/// Those of a text.
pub fn of_text(text: &str, marks: &[String]) -> Mentions {
    pieces(text, marks).into_iter().filter(|piece| piece.is_none()).map(|_| None).collect()
}

/// That of a part of a content, if it is a picture. `before` is the number of those that came before it.
pub fn of_part(part: &Value, before: usize) -> Result<Option<Option<Value>>> {
    let given: Vec<Value> = match part["type"].as_str() {
        Some("image") => {
            let given = KEYS.iter().filter_map(|key| Some((key, part.get(*key)?)));
            let given = given.filter(|(_, value)| !value.is_null());
            given
                .map(|(key, value)| match *key {
                    "base64" => json!({"base64": value}),
                    _ => value.clone(),
                })
                .collect()
        }
        // OpenAI's way.
        Some("image_url") => vec![part["image_url"].clone()],
        _ => return Ok(None),
    };
    if let Some(index) = part.get("index").and_then(Value::as_u64) {
        ensure!(
            index == before as u64,
            "a part of the type 'image' has the index {index}, expected {before}: pictures come in the order of the list"
        );
    }
    match &*given {
        [] => Ok(Some(None)),
        [one] => Ok(Some(Some(one.clone()))),
        _ => bail!("a part of a message has two pictures, expected one: {}", shown(part)),
    }
}

/// A text in pieces, with nothing where a picture is.
fn pieces<'t>(text: &'t str, marks: &[String]) -> Vec<Option<&'t str>> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    let first = |rest: &'t str| {
        let found = marks.iter().filter_map(|mark| Some((rest.find(&**mark)?, mark.len())));
        // Of two that begin at one place, the longer one.
        found.min_by_key(|(at, length)| (*at, usize::MAX - length))
    };
    while let Some((at, length)) = first(rest) {
        pieces.extend([Some(&rest[..at]), None]);
        rest = &rest[at + length..];
    }
    pieces.push(Some(rest));
    pieces
}

/// The content of a message as parts. A picture in a text parts it, and takes the space around it along: templates
/// write their own.
pub fn parted(content: &Value, marks: &[String]) -> Value {
    let text = |text: &str| -> Vec<Value> {
        let pieces = pieces(text, marks);
        let whole = pieces.len() == 1;
        let part = |piece: Option<&str>| match piece {
            None => Some(json!({"type": "image"})),
            Some(text) if whole => Some(json!({"type": "text", "text": text})),
            Some(text) => {
                let text = text.trim();
                (!text.is_empty()).then(|| json!({"type": "text", "text": text}))
            }
        };
        pieces.into_iter().filter_map(part).collect()
    };
    match content {
        Value::String(content) => text(content).into(),
        Value::Array(parts) => {
            let part = |part: &Value| match part["text"].as_str() {
                Some(inner) => text(inner),
                None => vec![part.clone()],
            };
            parts.iter().flat_map(part).collect()
        }
        other => other.clone(),
    }
}

/// The content of a message as one text, with `mark` where a picture is. Behind a picture that was a part comes a new
/// line, as in LLaVA's data.
pub fn written(content: &Value, marks: &[String], mark: &str) -> Value {
    match content {
        Value::String(text) => marked(text, marks, mark).into(),
        Value::Array(parts) => {
            let mut text = String::new();
            for (place, part) in parts.iter().enumerate() {
                match part["text"].as_str() {
                    Some(inner) => text += &marked(inner, marks, mark),
                    None => {
                        text += mark;
                        if place + 1 < parts.len() {
                            text.push('\n');
                        }
                    }
                }
            }
            text.into()
        }
        other => other.clone(),
    }
}

/// A text with `mark` for every mark.
pub fn marked(text: &str, marks: &[String], mark: &str) -> String {
    pieces(text, marks).into_iter().map(|piece| piece.unwrap_or(mark)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marks() -> Vec<String> {
        vec![MARK.to_owned(), "<start_of_image>".to_owned()]
    }

    #[test]
    fn a_picture_in_a_text_parts_it_and_takes_the_space_around_it_along() {
        let image = json!({"type": "image"});
        let text = |text: &str| json!({"type": "text", "text": text});
        for (content, expected) in [
            (json!("<image>\nWhat?"), json!([image, text("What?")])),
            (json!("What?\n<image>"), json!([text("What?"), image])),
            (json!("<image><start_of_image> Both?"), json!([image, image, text("Both?")])),
            (json!(" No picture\n"), json!([text(" No picture\n")])),
            (
                json!([text("a "), image, text("<image> b")]),
                json!([text("a "), image, image, text("b")]),
            ),
            (Value::Null, Value::Null),
        ] {
            assert_eq!(parted(&content, &marks()), expected, "{content}");
        }
    }

    #[test]
    fn a_part_names_its_picture_in_one_way() {
        let part = |part: Value| of_part(&part, 1);
        assert_eq!(part(json!({"type": "text", "text": "a"})).unwrap(), None);
        assert_eq!(part(json!({"type": "image", "text": null, "index": 1})).unwrap(), Some(None));
        assert_eq!(part(json!({"type": "image", "url": null})).unwrap(), Some(None));
        for key in ["image", "url", "path"] {
            assert_eq!(part(json!({"type": "image", key: "a"})).unwrap(), Some(Some(json!("a"))));
        }
        let url = json!({"type": "image_url", "image_url": {"url": "a"}});
        assert_eq!(part(url).unwrap(), Some(Some(json!({"url": "a"}))));
        let error = |given: Value| part(given).unwrap_err().to_string();
        assert!(error(json!({"type": "image", "index": 0})).contains("the index 0, expected 1"));
        assert!(error(json!({"type": "image", "url": "a", "path": "b"})).contains("two pictures"));
    }

    proptest! {
        #[test]
        fn a_text_that_is_parted_speaks_of_as_many_pictures(
            parts in prop::collection::vec(prop::sample::select(vec!["a", " ", "\n", "<", "<image>", "<image", "<start_of_image>"]), 0..8),
        ) {
            let text = parts.concat();
            let count = of_text(&text, &marks()).len();
            let parted = parted(&json!(text), &marks());
            let images = parted.as_array().unwrap().iter().filter(|part| part["type"] == "image");
            prop_assert_eq!(images.count(), count);
            let written = written(&json!(text), &marks(), "@");
            prop_assert_eq!(written.as_str().unwrap().matches('@').count(), count);
            prop_assert_eq!(of_text(&text, &[]).len(), 0);
        }
    }
}
