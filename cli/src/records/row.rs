//! A row of data, and the words about it.

use serde_json::{Map, Value};

/// The keys of a record, or the columns, in the file's order.
pub type Row = Map<String, Value>;

pub const NOT_UTF8: &str =
    "this is not UTF-8 text (is it Latin-1? Convert it: iconv -f LATIN1 -t UTF-8)";

/// A value in a message: its beginning, if it is long.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Characters of a value that a message shows.
const SHOWN: usize = 80;
