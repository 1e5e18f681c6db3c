//! The place of a reply in the text of a conversation.
//!
//! Most templates render the beginning of a conversation as the beginning of the whole: then a reply is what it adds.
//! Others leave earlier thinking out, or end the last message in another way. There the reply is blanked in the whole
//! conversation, and the text that changes is its content.

use std::ops::Range;

use anyhow::{bail, ensure, Result};
use serde_json::{json, Value};

/// A text and the places in it where an expression or a piece of the template ends.
pub struct Text {
    pub text: String,
    pub cuts: Vec<usize>,
}

pub struct Replies<'a> {
    pub messages: &'a [Value],
    /// The text of some messages; with `true` followed by the head of a reply.
    pub render: &'a dyn Fn(&[Value], bool) -> Result<Text>,
    /// The template.
    pub source: &'a str,
    pub whole: &'a Text,
}

/// The bytes of a head that a template may leave out once the reply is there: `<think>`.
const HEAD: usize = 256;

impl Replies<'_> {
    /// The text of a message from behind its head to its end token, behind `floor`.
    pub fn find(&self, place: usize, floor: usize) -> Result<Range<usize>> {
        let (first, whole) = (&self.messages[..=place], &*self.whole.text);
        let before = (self.render)(&first[..place], true).map(|text| text.text);
        let after = (self.render)(first, false)?.text;
        match &before {
            Ok(before) if after.starts_with(before) && whole.starts_with(&after) => {
                ensure!(before.len() < after.len(), "nothing of it is in the text");
                let head = self.head_of_first(place, &after[before.len()..]);
                return Ok(before.len() + head..after.len());
            }
            _ => {}
        }
        let Some((other, other_after)) = self.blanked(place)? else {
            bail!("nothing of it is in the text");
        };
        let content = difference(whole, &other);
        let alone = difference(&after, &other_after);
        ensure!(
            floor <= content.start && content.len() <= alone.len(),
            "the text of other messages depends on it"
        );
        ensure!(
            self.stands_alone(place, &whole[content.clone()]),
            "the text of other messages is between its parts"
        );
        let rest = &after[alone.end..];
        let tail = common(whole[content.end..].chars(), rest.chars());
        let mut end = content.end + tail;
        if tail < rest.len() {
            // A beginning that is shared by chance, as of two tokens, is no end.
            let cuts = || self.whole.cuts.iter().copied().filter(|cut| *cut >= content.end);
            let near = content.end + 2 * rest.len() + 32;
            let own = cuts().take_while(|cut| *cut <= end).last();
            end = own.or(cuts().next().filter(|cut| *cut <= near)).unwrap_or(content.end);
        }
        let start = match before {
            Ok(before) => {
                let closed = (self.render)(&first[..place], false).map(|text| text.text);
                head(&before, &closed.unwrap_or_default(), whole, floor..content.start)
            }
            Err(_) => content.start,
        };
        Ok(start..end)
    }

    /// The bytes of a head that is not given without a message before it, as where the loop over messages writes it.
    fn head_of_first(&self, place: usize, reply: &str) -> usize {
        if self.messages[..place].iter().any(|message| message["role"] == "user") {
            return 0;
        }
        let user = [json!({"role": "user", "content": "x"})];
        let text = |open: bool| (self.render)(&user, open).map(|text| text.text);
        let (Ok(open), Ok(closed)) = (text(true), text(false)) else { return 0 };
        let head = &open[common(open.chars(), closed.chars())..];
        if reply.len() > head.len() && reply.starts_with(head) {
            head.len()
        } else {
            0
        }
    }

    /// A text of the message is still there once all others are blanked.
    fn stands_alone(&self, place: usize, text: &str) -> bool {
        let mut messages = self.messages.to_vec();
        for (_, message) in messages.iter_mut().enumerate().filter(|(other, _)| *other != place) {
            Part::Content
                .of(message, &|text| cover(text, '\u{e000}', &|tag| self.source.contains(tag)));
        }
        (self.render)(&messages, false).map_or(true, |other| other.text.contains(text))
    }

    /// The whole and its first messages up to this one, with something of it blanked that shows in both.
    fn blanked(&self, place: usize) -> Result<Option<(String, String)>> {
        let whole = &self.whole.text;
        let Some(blank) = ('\u{e000}'..'\u{f8ff}').find(|c| !whole.contains(*c)) else {
            return Ok(None);
        };
        // A tag that the template looks for stays.
        let keep = |tag: &str| self.source.contains(tag);
        let mut messages = self.messages.to_vec();
        for part in [Part::Content, Part::Arguments, Part::Names, Part::Fill] {
            messages[place] = self.messages[place].clone();
            part.of(&mut messages[place], &|text| cover(text, blank, &keep));
            if messages[place] == self.messages[place] {
                continue;
            }
            let render = |messages: &[Value]| (self.render)(messages, false).map(|text| text.text);
            if let (Ok(other), Ok(after)) = (render(&messages), render(&messages[..=place])) {
                if other != *whole {
                    return Ok(Some((other, after)));
                }
            }
        }
        Ok(None)
    }
}

/// The part of a message that is blanked.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Content,
    Arguments,
    Names,
    /// An empty content.
    Fill,
}

impl Part {
    fn of(self, message: &mut Value, cover: &dyn Fn(&str) -> String) {
        match self {
            Part::Content => {
                for key in ["content", "reasoning_content", "thinking", "reasoning"] {
                    match message.get_mut(key) {
                        Some(Value::Array(parts)) => parts
                            .iter_mut()
                            .filter_map(|part| part.get_mut("text"))
                            .for_each(|t| every(t, cover)),
                        Some(text) => every(text, cover),
                        None => {}
                    }
                }
            }
            Part::Fill => message["content"] = cover("x").into(),
            Part::Arguments | Part::Names => {
                let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
                for call in calls.into_iter().flatten() {
                    let call =
                        if call.get("function").is_some() { &mut call["function"] } else { call };
                    let key = if self == Part::Names { "name" } else { "arguments" };
                    if let Some(value) = call.get_mut(key) {
                        every(value, cover);
                    }
                }
            }
        }
    }
}

fn every(value: &mut Value, cover: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = cover(text),
        Value::Array(items) => items.iter_mut().for_each(|item| every(item, cover)),
        Value::Object(map) => map.values_mut().for_each(|value| every(value, cover)),
        _ => {}
    }
}

/// All but spaces and tags replaced. A tag is in angles or brackets.
fn cover(text: &str, blank: char, keep: &dyn Fn(&str) -> bool) -> String {
    let (mut covered, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let end = match c {
            '<' => rest.find('>'),
            '[' => rest.find(']'),
            _ => None,
        };
        let tag = end.map_or("", |end| &rest[..=end]);
        let kept = if !tag.is_empty() && keep(tag) { tag } else { &rest[..c.len_utf8()] };
        if kept == tag || c.is_whitespace() {
            covered += kept;
        } else {
            covered.push(blank);
        }
        rest = &rest[kept.len()..];
    }
    covered
}

/// The bytes that two texts have in common at their beginning, or with reversed characters at their end.
fn common(a: impl Iterator<Item = char>, b: impl Iterator<Item = char>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// The part of a text that is different in the other one.
fn difference(text: &str, other: &str) -> Range<usize> {
    let start = common(text.chars(), other.chars());
    let end = common(text[start..].chars().rev(), other[start..].chars().rev());
    start..text.len() - end
}

/// The place in the text behind the head of a reply: there the text before it ends as what the model is given does, or
/// as a beginning of that, since a template may leave the rest of the head out once there is a reply. `closed` is what
/// the model is given, without the head.
fn head(given: &str, closed: &str, text: &str, within: Range<usize>) -> usize {
    let shared = common(given.chars(), closed.chars());
    // Before the head are texts of others, with angles that begin no tag.
    let open = if shared == closed.len() { shared } else { 0 };
    let (given, bytes) = (given.as_bytes(), text.as_bytes());
    let mut best = (0, 0, within.end);
    for ending in shared.max(given.len().saturating_sub(HEAD))..=given.len() {
        for place in within.clone().chain([within.end]).filter(|at| text.is_char_boundary(*at)) {
            let pairs = given[..ending].iter().rev().zip(bytes[..place].iter().rev());
            let alike = pairs.take_while(|(a, b)| a == b).count();
            best = best.max((alike, ending, place));
        }
    }
    let (_, ending, place) = best;
    // A tag of which only the beginning is shared is none of the head.
    let shared = String::from_utf8_lossy(&given[..ending]);
    let is_cut =
        |tag: &usize| *tag >= open && ending < given.len() && !shared[*tag..].contains('>');
    let tag = shared.rfind('<').filter(is_cut);
    tag.map_or(place, |tag| place.saturating_sub(ending.saturating_sub(tag)).max(within.start))
}
