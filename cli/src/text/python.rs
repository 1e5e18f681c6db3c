//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// A number of the data that only Python's way of writing tells from minijinja's: `1e-05`.
#[derive(Debug)]
pub struct Float(pub f64);

impl Object for Float {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.0 != 0.
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&float(self.0))
    }
}

/// A token that the tokenizer lacks: undefined for a template, until it is written. Then it leaves a mark.
#[derive(Debug)]
pub struct Missing(String);

impl Missing {
    const MARKS: [char; 2] = ['\u{f0000}', '\u{f0001}'];

    pub fn value(name: &str) -> Value {
        Value::from_object(Missing(name.to_owned()))
    }

    /// The one that was written into a text.
    pub fn name_in(text: &str) -> Option<&str> {
        Some(text.split_once(Missing::MARKS[0])?.1.split_once(Missing::MARKS[1])?.0)
    }
}

impl Object for Missing {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        false
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [begin, end] = Missing::MARKS;
        write!(f, "{begin}{}{end}", self.0)
    }
}

pub fn is_undefined(value: &Value) -> bool {
    value.is_undefined() || value.downcast_object_ref::<Missing>().is_some()
}

/// JSON as a template sees it.
pub fn given(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => match number.as_f64().unwrap_or(f64::NAN) {
                number if float(number).contains('e') => Value::from_object(Float(number)),
                number => Value::from(number),
            },
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(given).collect::<Vec<_>>()),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), given(value))))
        }
    }
}

/// The number of a value that is a `float`.
pub fn as_float(value: &Value) -> Option<f64> {
    if let Some(float) = value.downcast_object_ref::<Float>() {
        return Some(float.0);
    }
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|_| is_float)
}

/// `repr(number)`.
pub fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan" } else { ["inf", "-inf"][usize::from(number < 0.)] }
            .into();
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = number.to_string();
        if text.contains('.') {
            text
        } else {
            text + ".0"
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// `str(value)`; nothing for what is undefined.
pub fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut out = String::new();
            repr(value, &mut out);
            out
        }
    }
}

fn repr(value: &Value, out: &mut String) {
    if let Some(text) = value.as_str() {
        return quoted(text, out);
    }
    if let Some(number) = as_float(value) {
        return out.push_str(&float(number));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
            let ends = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(ends.0);
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(item, out);
            }
            out.push_str(if value.is_tuple() && items.len() == 1 { "," } else { "" });
            out.push(ends.1);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, (key, value)) in pairs(value).iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(key, out);
                out.push_str(": ");
                repr(value, out);
            }
            out.push('}');
        }
        _ => drop(write!(out, "{value}")),
    }
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            '"' | '\'' | ' '..='~' => out.push(c),
            // Rust escapes what Python does: controls, and spaces but one. Marks only at the beginning.
            c if !format!("{:?}", format!("a{c}")).contains('\\') => out.push(c),
            c => drop(match c as u32 {
                code @ ..0x100 => write!(out, "\\x{code:02x}"),
                code @ ..0x10000 => write!(out, "\\u{code:04x}"),
                code => write!(out, "\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

pub fn pairs(map: &Value) -> Vec<(Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default())).collect()
}

/// The arguments of `json.dumps`.
pub struct Json {
    pub ascii: bool,
    /// The space of each level of a nested value; `None`: all in one line.
    pub indent: Option<String>,
    pub comma: String,
    pub colon: String,
    pub sorted: bool,
}

impl Json {
    pub fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, 1, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.string(text, out);
            return Ok(());
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<_>>();
                self.list(['[', ']'], items, depth, out, |item, out| {
                    self.write(&item, depth + 1, out)
                })
            }
            ValueKind::Map => {
                let mut pairs = pairs(value);
                if self.sorted {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list(['{', '}'], pairs, depth, out, |(key, value), out| {
                    if key.as_str().is_some() {
                        self.write(&key, depth, out)?;
                    } else {
                        self.string(&scalar(&key)?, out);
                    }
                    out.push_str(&self.colon);
                    self.write(&value, depth + 1, out)
                })
            }
            _ => {
                out.push_str(&scalar(value)?);
                Ok(())
            }
        }
    }

    fn list<T>(
        &self,
        ends: [char; 2],
        items: Vec<T>,
        depth: usize,
        out: &mut String,
        write: impl Fn(T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        let full = !items.is_empty();
        out.push(ends[0]);
        for (i, item) in items.into_iter().enumerate() {
            out.push_str(if i > 0 { &self.comma } else { "" });
            line(depth, out);
            write(item, out)?;
        }
        if full {
            line(depth - 1, out);
        }
        out.push(ends[1]);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn scalar(value: &Value) -> Result<String, Error> {
    if let Some(number) = as_float(value) {
        return Ok(match float(number) {
            text if number.is_finite() => text,
            text => text.replace("nan", "NaN").replace("inf", "Infinity"),
        });
    }
    match value.kind() {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(value.is_true().to_string()),
        ValueKind::Number => Ok(value.to_string()),
        // Only its error says what is undefined.
        ValueKind::Undefined => value.get_attr("x").map(|_| String::new()),
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a value of the type {kind} has no JSON"),
        )),
    }
}
