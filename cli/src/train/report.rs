//! The report on a run before it starts: lines as they come, or all of it as JSON in the end.

use std::fmt::Display;

use serde_json::{json, Map, Value};

use crate::progress;

pub struct Report {
    json: bool,
    lines: Vec<String>,
    values: Map<String, Value>,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Report { json, lines: Vec::new(), values: Map::new() }
    }

    pub fn line(&mut self, line: impl Display) {
        if !self.json {
            progress::say(&line);
        }
        self.lines.push(line.to_string());
    }

    pub fn lines(&mut self, lines: impl IntoIterator<Item = String>) {
        lines.into_iter().for_each(|line| self.line(line));
    }

    /// A value of the JSON.
    pub fn set(&mut self, key: &str, value: Value) {
        self.values.insert(key.to_owned(), value);
    }

    pub fn finish(mut self) {
        if self.json {
            self.set("report", json!(self.lines));
            println!("{:#}", Value::Object(self.values));
        }
    }
}
