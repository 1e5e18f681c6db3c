//! Lines of a file, and documents made of lines.

use std::io::BufRead;

use anyhow::Result;
use serde::Deserialize;

use super::span::Span;

/// The documents of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    Paragraphs,
    Lines,
    File,
}

pub fn spans(
    reader: &mut impl BufRead,
    mut start: u64,
    documents: Documents,
    most: usize,
) -> Result<Vec<Span>> {
    let (mut spans, mut line, mut open, mut bytes) = (Vec::<Span>::new(), 0, false, Vec::new());
    while spans.len() < most {
        bytes.clear();
        let len = reader.read_until(b'\n', &mut bytes)?;
        if len == 0 {
            break;
        }
        line += 1;
        let blank = bytes.iter().all(u8::is_ascii_whitespace);
        match spans.last_mut().filter(|_| open) {
            Some(span) if !blank => span.len = (start - span.start) as usize + len,
            _ if !blank => spans.push(Span { start, len, line }),
            _ => {}
        }
        open = match documents {
            Documents::Lines => false,
            Documents::Paragraphs => !blank,
            Documents::File => open || !blank,
        };
        start += len as u64;
    }
    Ok(spans)
}
