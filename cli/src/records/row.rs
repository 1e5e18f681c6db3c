//! A row of data, and the words about it.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The keys of a record, or the columns, in the file's order.
pub type Row = Map<String, Value>;

pub const NOT_UTF8: &str =
    "this is not UTF-8 text (is it Latin-1? Convert it: iconv -f LATIN1 -t UTF-8)";

/// A value in a message: its beginning, if it is long.
pub fn shown(value: &Value) -> String {
    shortened(&value.to_string(), SHOWN).into_owned()
}

/// Characters of a value that a message shows.
const SHOWN: usize = 80;

/// The beginning of a text that has more characters than `most`.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
