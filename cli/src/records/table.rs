//! Tables with a header: CSV and TSV.

use std::io::Read;

use anyhow::{bail, ensure, Context, Result};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::Value;

use super::format::Format;
use super::row::{Row, NOT_UTF8};
use super::span::Span;

pub struct Header {
    pub names: Vec<String>,
    delimiter: u8,
}

pub fn spans(
    reader: &mut impl Read,
    start: u64,
    format: Format,
    most: usize,
) -> Result<(Header, Vec<Span>)> {
    let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(reader);
    let names = reader.headers().map_err(|error| match error.kind() {
        csv::ErrorKind::Utf8 { .. } => anyhow::anyhow!("the header: {NOT_UTF8}"),
        _ => error.into(),
    })?;
    let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
    check(&names)?;
    let (mut spans, mut record) = (Vec::new(), ByteRecord::new());
    while spans.len() < most {
        let (from, line) = (reader.position().byte(), reader.position().line() as usize);
        if !reader.read_byte_record(&mut record)? {
            break;
        }
        let len = (reader.position().byte() - from) as usize;
        spans.push(Span { start: start + from, len, line });
    }
    Ok((Header { names, delimiter }, spans))
}

fn check(names: &[String]) -> Result<()> {
    if let [name] = names {
        for (separator, words) in [
            (';', "semicolons: write it with commas"),
            ('\t', "tabs: set 'data.format' to tsv"),
            ('|', "vertical bars: write it with commas"),
        ] {
            ensure!(
                !name.contains(separator),
                "the header has one column, '{name}': its names are separated by {words}"
            );
        }
    }
    for (place, name) in names.iter().enumerate() {
        if !name.is_empty() && names[..place].contains(name) {
            bail!("the header has two columns '{name}': rename one");
        }
    }
    Ok(())
}

impl Header {
    /// An empty cell is null.
    pub fn row(&self, bytes: &[u8]) -> Result<Row> {
        let mut builder = ReaderBuilder::new();
        builder.buffer_capacity(bytes.len() + 2);
        builder.delimiter(self.delimiter).has_headers(false).flexible(true);
        let mut record = ByteRecord::new();
        // A line behind the row is another record, but within quotes that nothing closes.
        let mut reader = builder.from_reader(bytes.chain(&b"\n."[..]));
        reader.read_byte_record(&mut record)?;
        ensure!(
            reader.read_byte_record(&mut ByteRecord::new())?,
            "a double quote opens a field that nothing closes: the rest of the file would be its text. Close it, or \
             write the quote twice in a quoted field"
        );
        let (found, expected) = (record.len(), self.names.len());
        ensure!(
            found == expected,
            "this row has {found} fields, expected {expected} as in the header ({}): fields with a separator or a \
             line's end in them stand in double quotes",
            self.names.join(", ")
        );
        let cell = |(name, cell): (&String, &[u8])| {
            let text = std::str::from_utf8(cell).context(NOT_UTF8)?;
            let value = if text.is_empty() { Value::Null } else { text.into() };
            Ok((name.clone(), value))
        };
        self.names.iter().zip(record.iter()).map(cell).collect()
    }
}
