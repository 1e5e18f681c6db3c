//! JSON: where the objects of a file are, and the reading of one.

use std::io::BufRead;

use anyhow::{bail, ensure, Context, Result};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::format::Format;
use super::row::{shown, Row};
use super::span::Span;

/// The arrangement of objects in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    Lines,
    /// One after the other, over lines as they like.
    Sequence,
    /// The elements of one array.
    Array,
}

/// As the beginning of a file says it.
pub fn arrangement(head: &[u8], format: Format) -> Arrangement {
    let head = head.trim_ascii_start();
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let whole = line.len() == head.len();
    let complete = || serde_json::from_slice::<IgnoredAny>(line).is_ok();
    if head.starts_with(b"[") {
        Arrangement::Array
    } else if whole || (format == Format::Jsonl && line.trim_ascii() != b"{") || complete() {
        Arrangement::Lines
    } else {
        Arrangement::Sequence
    }
}

/// The objects of a sequence or an array. What is wrong inside of one is found when it is read.
pub fn spans(
    reader: &mut impl BufRead,
    start: u64,
    arrangement: Arrangement,
    most: usize,
) -> Result<Vec<Span>> {
    let array = arrangement == Arrangement::Array;
    let mut scan = Scan { array, at: start, line: 1, ..Scan::default() };
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        for byte in buffer {
            scan.byte(*byte)?;
            if scan.spans.len() >= most {
                return Ok(scan.spans);
            }
        }
        let len = buffer.len();
        reader.consume(len);
    }
    ensure!(
        scan.closed || !array,
        "the JSON array has no end: the file is cut off, or a bracket or quote is missing"
    );
    // An object without an end, which is an error when it is read.
    scan.end();
    Ok(scan.spans)
}

/// A reader of bytes that knows strings and brackets, and no more.
#[derive(Default)]
struct Scan {
    array: bool,
    spans: Vec<Span>,
    at: u64,
    line: usize,
    /// The array's own bracket does not count.
    depth: usize,
    opened: bool,
    closed: bool,
    string: bool,
    escaped: bool,
    element: Option<Span>,
}

impl Scan {
    fn byte(&mut self, byte: u8) -> Result<()> {
        let at = self.at;
        self.at += 1;
        self.line += usize::from(byte == b'\n');
        if self.string {
            self.string = self.escaped || byte != b'"';
            self.escaped = byte == b'\\' && !self.escaped;
        } else if byte.is_ascii_whitespace() {
            return Ok(());
        } else if self.closed {
            bail!(
                "line {}: there is more behind the end of the JSON array: expected one array, or an object in each \
                 line",
                self.line
            );
        } else if self.array && !self.opened {
            self.opened = true;
            return Ok(());
        } else if self.array && self.depth == 0 && (byte == b',' || byte == b']') {
            let empty = self.element.is_none() && (byte == b',' || !self.spans.is_empty());
            ensure!(!empty, "line {}: there is nothing before the '{}'", self.line, byte as char);
            self.closed = byte == b']';
            self.end();
            return Ok(());
        } else {
            match byte {
                b'"' => self.string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    let depth = self.depth.checked_sub(1);
                    self.depth = depth.with_context(|| {
                        format!("line {}: a '{}' that closes nothing", self.line, byte as char)
                    })?;
                }
                _ => {}
            }
        }
        let element = self.element.get_or_insert(Span { start: at, len: 0, line: self.line });
        element.len = (at + 1 - element.start) as usize;
        if !self.array && self.depth == 0 && (byte == b'}' || byte == b']') && !self.string {
            self.end();
        }
        Ok(())
    }

    fn end(&mut self) {
        self.spans.extend(self.element.take());
    }
}

/// An object.
pub fn row(text: &str) -> Result<Row> {
    match value(text).context("this is not JSON")? {
        Value::Object(row) => Ok(row),
        other => bail!("this is {}, expected an object with keys", shown(&other)),
    }
}

/// Keys under which the rows of a file stand.
const ROWS: [&str; 8] =
    ["data", "rows", "train", "examples", "instances", "items", "records", "samples"];

/// Refuses the one object of a file if it holds all rows, or columns.
pub fn refuse_whole(row: &Row) -> Result<()> {
    let rows = |key: &&&str| match row.get(**key) {
        Some(Value::Array(list)) => list.first().is_some_and(Value::is_object),
        _ => false,
    };
    if let Some(key) = ROWS.iter().find(rows) {
        bail!("it is one object whose '{key}' holds the rows: write that array alone, such as with jq .{key}");
    }
    let length = |value: &Value| match value {
        Value::Array(list) if list.iter().all(|item| !item.is_object()) => Some(list.len()),
        Value::Object(map) if map.contains_key("0") => Some(map.len()),
        _ => None,
    };
    let lengths: Vec<Option<usize>> = row.values().map(length).collect();
    let columns = lengths.first().is_some_and(|first| {
        first.is_some_and(|length| length > 0) && lengths.iter().all(|length| length == first)
    });
    let index = row.contains_key("0") && row.values().all(Value::is_object);
    let split = row.contains_key("columns") && row.contains_key("data");
    ensure!(
        row.contains_key("input_ids") || !columns && !split && !index,
        "it holds columns rather than rows: write rows, with pandas to_json(…, orient='records'), with datasets \
         Dataset.from_dict(…).to_json(…)"
    );
    Ok(())
}

/// JSON as Python writes it, in which a number may be NaN or infinite; such a number is null.
fn value(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| match without_nan(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    })
}

fn without_nan(text: &str) -> Option<String> {
    let (mut out, mut rest, mut found) = (String::new(), text, false);
    while let Some(place) = rest.find(['"', 'N', 'I', '-']) {
        out += &rest[..place];
        rest = &rest[place..];
        if let Some(name) = ["NaN", "Infinity", "-Infinity"].iter().find(|n| rest.starts_with(**n))
        {
            out += "null";
            rest = &rest[name.len()..];
            found = true;
            continue;
        }
        let string = rest.starts_with('"').then(|| string_end(rest)).flatten();
        let (taken, after) = rest.split_at(string.unwrap_or(1));
        out += taken;
        rest = after;
    }
    found.then(|| out + rest)
}

/// The length of the string that a text begins with, quotes included.
fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    let closes = |(_, byte): &(usize, u8)| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    };
    text.bytes().enumerate().skip(1).find(closes).map(|(place, _)| place + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn found(text: &str, format: Format) -> Result<Vec<Value>> {
        let arrangement = arrangement(text.as_bytes(), format);
        assert_ne!(arrangement, Arrangement::Lines, "{text}");
        let spans = spans(&mut text.as_bytes(), 0, arrangement, usize::MAX)?;
        let of = |span: &Span| &text[span.start as usize..span.start as usize + span.len];
        spans.iter().map(|span| Ok(value(of(span))?)).collect()
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a\"\\\\\\[\\]{},\n é]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ab\"\\\\]{0,3}", inner, 0..4)
                    .prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_elements_of_an_array_are_found_however_it_is_written(all in prop::collection::vec(values(), 0..5)) {
            let array = json!(all);
            for text in [array.to_string(), format!("\n {array:#}\n\n")] {
                prop_assert_eq!(found(&text, Format::Json).unwrap(), all.clone());
            }
            // Without its end it is refused.
            let text = array.to_string();
            prop_assert!(found(&text[..text.len() - 1], Format::Json).is_err());
        }

        #[test]
        fn objects_in_a_sequence_are_found(all in prop::collection::vec(values(), 1..5)) {
            let all: Vec<Value> = all.into_iter().map(|value| json!({"key": value})).collect();
            let text = all.iter().map(|value| format!("{value:#}\n")).collect::<String>();
            prop_assert_eq!(found(&text, Format::Json).unwrap(), all);
        }

        #[test]
        fn no_bytes_make_the_scan_panic(bytes in prop::collection::vec(prop::sample::select(b"[]{},\"\\ \na1".to_vec()), 0..30)) {
            for arrangement in [Arrangement::Array, Arrangement::Sequence] {
                let _ = spans(&mut &*bytes, 0, arrangement, usize::MAX);
            }
        }
    }

    #[test]
    fn numbers_that_python_writes_and_json_lacks_are_null() {
        let text =
            r#"{"a": NaN, "NaN": "NaN \" Infinity", "b": [-Infinity, Infinity, -1], "c": "\\"}"#;
        let expected =
            json!({"a": null, "NaN": "NaN \" Infinity", "b": [null, null, -1], "c": "\\"});
        assert_eq!(value(text).unwrap(), expected);
        for bad in [r#"{"a": nan}"#, r#"{"a": NaN"#, r#"{"a": "NaN}"#, "-", "\"", "N"] {
            assert!(value(bad).is_err(), "{bad}");
        }
    }
}
