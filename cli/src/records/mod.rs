//! The records of a data file, whatever its format: found in one pass, read one by one, never held as a whole.

pub mod digest;
pub mod format;
mod json;
pub mod keys;
mod lines;
mod parquet;
mod row;
mod source;
mod span;
mod table;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use indicatif::ProgressBar;

use crate::progress;
use digest::Digest;
use format::Format;
use json::Arrangement;
pub use lines::Documents;
use row::NOT_UTF8;
pub use row::{shortened, shown, Row};
pub use source::refuse_data_set;
use source::Source;
use span::Span;
use table::Header;

pub struct Records {
    path: PathBuf,
    /// The data itself, or a temporary copy of it in lines of JSON.
    file: Mutex<File>,
    format: Format,
    layout: Layout,
    spans: Vec<Span>,
    pub digest: String,
}

enum Layout {
    Text,
    /// An object in each line.
    Lines,
    /// Objects in a list, or one after the other, over lines as they like.
    Objects,
    Table(Header),
    /// Rows that have no lines.
    Columns,
}

impl Records {
    /// Blank lines are no records. `documents` are those of a text.
    pub fn open(path: &Path, format: Format, documents: Documents) -> Result<Self> {
        Self::scan(path, format, documents, usize::MAX)
            .with_context(|| format!("cannot read the data '{}'", path.display()))
    }

    /// The format and the first row, of which a text has none; nothing where there is none that can be read.
    pub fn first(path: &Path, format: Format) -> Option<(Format, Row)> {
        let records = Self::scan(path, format, Documents::Lines, 1).ok()?;
        let row = if records.is_text() { Row::new() } else { records.row(0).ok()? };
        Some((records.format, row))
    }

    fn scan(path: &Path, format: Format, documents: Documents, most: usize) -> Result<Self> {
        let Source { mut file, start, head, format } = Source::open(path, format, most)?;
        let make = |file: File, layout, spans, digest: Digest| {
            let (path, file, digest) = (path.into(), file.into(), digest.text());
            Records { path, file, format, layout, spans, digest }
        };
        if format == Format::Parquet {
            let bar = progress::counted("reading", 0)?;
            let (file, spans, digest) = parquet::spool(file, most, &bar)?;
            bar.finish_and_clear();
            return Ok(make(file, Layout::Columns, spans, digest));
        }
        let bar = progress::bytes("reading", file.metadata()?.len())?;
        file.seek(SeekFrom::Start(start))?;
        let mut reader =
            BufReader::new(Tracked { file: &mut file, digest: Digest::new(), bar: &bar });
        let (layout, spans) = match format {
            Format::Csv | Format::Tsv => {
                let (header, spans) = table::spans(&mut reader, start, format, most)?;
                (Layout::Table(header), spans)
            }
            Format::Json | Format::Jsonl => match json::arrangement(&head, format) {
                Arrangement::Lines => {
                    (Layout::Lines, lines::spans(&mut reader, start, Documents::Lines, most)?)
                }
                other => (Layout::Objects, json::spans(&mut reader, start, other, most)?),
            },
            _ => (Layout::Text, lines::spans(&mut reader, start, documents, most)?),
        };
        let digest = reader.into_inner().digest;
        bar.finish_and_clear();
        let records = make(file, layout, spans, digest);
        if records.len() == 1 && !records.is_text() {
            records.row(0).map_or(Ok(()), |row| json::refuse_whole(&row))?;
        }
        Ok(records)
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The records are texts rather than rows.
    pub fn is_text(&self) -> bool {
        matches!(self.layout, Layout::Text)
    }

    /// The names of a table's columns.
    pub fn columns(&self) -> Option<&[String]> {
        match &self.layout {
            Layout::Table(header) => Some(&header.names),
            _ => None,
        }
    }

    /// The file, and the line or the number of a record.
    pub fn place(&self, record: usize) -> String {
        let (path, line, number) = (self.path.display(), self.spans[record].line, record + 1);
        match self.layout {
            Layout::Text | Layout::Lines => format!("{path}:{line}"),
            // Ends of lines are counted to what follows them.
            Layout::Table(_) => {
                let bytes = self.bytes(record).unwrap_or_default();
                let ends = bytes.iter().take_while(|byte| b"\r\n".contains(byte));
                format!("{path}:{}", line + ends.filter(|byte| **byte == b'\n').count())
            }
            Layout::Objects => format!("{path}:{line} (row {number})"),
            Layout::Columns => format!("{path}, row {number}"),
        }
    }

    /// A text, without the line's end.
    pub fn text(&self, record: usize) -> Result<String> {
        let text = String::from_utf8(self.bytes(record)?).context(NOT_UTF8)?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    }

    /// A row.
    pub fn row(&self, record: usize) -> Result<Row> {
        match &self.layout {
            Layout::Table(header) => header.row(&self.bytes(record)?),
            _ => json::row(&self.text(record)?),
        }
    }

    fn bytes(&self, record: usize) -> Result<Vec<u8>> {
        let span = self.spans.get(record).context("there is no such record")?;
        let mut bytes = vec![0; span.len];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(span.start))?;
        file.read_exact(&mut bytes).context("the file was changed during the run")?;
        Ok(bytes)
    }
}

/// A file that is read: its digest, and a bar that shows how far.
struct Tracked<'f> {
    file: &'f mut File,
    digest: Digest,
    bar: &'f ProgressBar,
}

impl Read for Tracked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.digest.add(&buffer[..count]);
        self.bar.inc(count as u64);
        Ok(count)
    }
}
