//! Parquet, as pyarrow, pandas and datasets write it: its rows become lines of JSON in a temporary file, since columns
//! cannot be read row by row in any order.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::panic::{self, AssertUnwindSafe};

use crate::progress::Counted;
use anyhow::{bail, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{json, Value};

use super::digest::Digest;
use super::row::Row;
use super::span::Span;

/// Messages keep this key, whose null means something to chat templates.
const CONTENT: &str = "content";

/// The temporary file, where its rows are, and a number for all of it.
type Spooled = (File, Vec<Span>, Digest);

/// Of a damaged file the reader may panic.
pub fn spool(file: File, most: usize, bar: &Counted) -> Result<Spooled> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let spooled = panic::catch_unwind(AssertUnwindSafe(|| read(file, most, bar)));
    panic::set_hook(hook);
    spooled.unwrap_or_else(|_| bail!("the Parquet file is damaged"))
}

fn read(file: File, most: usize, bar: &Counted) -> Result<Spooled> {
    let reader = SerializedFileReader::new(file)
        .context("this is not a Parquet file that can be read, or it is cut off")?;
    bar.set_length(reader.metadata().file_metadata().num_rows().max(0) as u64);
    let spooled = tempfile::tempfile().context("there is no temporary file for the rows")?;
    let mut out = BufWriter::new(spooled);
    let (mut spans, mut digest, mut start) = (Vec::new(), Digest::new(), 0);
    for row in reader.get_row_iter(None)?.take(most) {
        let number = spans.len() + 1;
        let row = row.with_context(|| format!("row {number}: the Parquet file is damaged"))?;
        let fields = row.get_column_iter().map(|(key, field)| (key.clone(), named(key, field)));
        let row: Row = fields.collect();
        let bytes = serde_json::to_vec(&row)?;
        out.write_all(&bytes).context("the rows do not fit into the temporary directory")?;
        digest.add(&bytes);
        spans.push(Span { start, len: bytes.len(), line: number });
        start += bytes.len() as u64;
        bar.inc(1);
    }
    Ok((out.into_inner()?, spans, digest))
}

/// Arrow gives all structures of a column the same keys, and null to those that were not there.
fn object<'f>(fields: impl Iterator<Item = (&'f String, &'f Field)>) -> Row {
    let there = |(key, field): &(&String, &Field)| **field != Field::Null || *key == CONTENT;
    fields.filter(there).map(|(key, field)| (key.clone(), named(key, field))).collect()
}

/// Keys whose bytes are pictures. Those of others are counted alone.
const PICTURES: [&str; 3] = ["bytes", "image", "images"];

fn named(key: &str, field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) if PICTURES.contains(&key) && bytes.as_utf8().is_err() => {
            json!(format!("data:;base64,{}", STANDARD.encode(bytes.data())))
        }
        Field::ListInternal(list) if PICTURES.contains(&key) => {
            list.elements().iter().map(|element| named(key, element)).collect()
        }
        field => value(field),
    }
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Byte(value) => json!(value),
        Field::Short(value) => json!(value),
        Field::Int(value) => json!(value),
        Field::Long(value) => json!(value),
        Field::UByte(value) => json!(value),
        Field::UShort(value) => json!(value),
        Field::UInt(value) => json!(value),
        Field::ULong(value) => json!(value),
        Field::Float16(value) => json!(f32::from(*value)),
        Field::Float(value) => json!(value),
        Field::Double(value) => json!(value),
        Field::Str(text) => json!(text),
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => json!(text),
            Err(_) => json!({ "bytes": bytes.len() }),
        },
        Field::Group(group) => object(group.get_column_iter()).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |field: &Field| match value(field) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let entries = map.entries().iter();
            entries.map(|(name, field)| (key(name), value(field))).collect::<Row>().into()
        }
        // Dates, times and decimal numbers, as text.
        other => json!(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// A file with a column of texts, null among them.
    fn file(texts: &[Option<&str>]) -> Vec<u8> {
        let schema = "message rows { optional binary text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = texts.iter().flatten().map(|text| (*text).into()).collect();
        let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.into_inner().unwrap()
    }

    fn spooled(bytes: &[u8]) -> Result<String> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        let (mut file, spans, _) =
            spool(file, usize::MAX, &crate::progress::counted("reading", 0).unwrap())?;
        let mut text = String::new();
        std::io::Seek::rewind(&mut file)?;
        file.read_to_string(&mut text)?;
        assert_eq!(spans.iter().map(|span| span.len).sum::<usize>(), text.len());
        Ok(text)
    }

    #[test]
    fn bytes_of_pictures_are_kept_and_others_are_counted() {
        let bytes = Field::Bytes(ByteArray::from(vec![0xff, 0xd8]));
        assert_eq!(named("bytes", &bytes), "data:;base64,/9g=");
        assert_eq!(named("text", &bytes), json!({"bytes": 2}));
        assert_eq!(named("image", &Field::Str("a.png".into())), "a.png");
    }

    #[test]
    fn a_damaged_file_is_an_error_whatever_byte_is_wrong() {
        let bytes = file(&[Some("a"), None, Some("b")]);
        assert_eq!(spooled(&bytes).unwrap(), r#"{"text":"a"}{"text":null}{"text":"b"}"#);
        let mut refused = 0;
        for place in 0..bytes.len() {
            for bit in [0, 4, 7] {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                refused += usize::from(spooled(&damaged).is_err());
            }
            assert!(spooled(&bytes[..place]).is_err());
        }
        assert!(refused > bytes.len() / 2, "{refused}");
    }
}
