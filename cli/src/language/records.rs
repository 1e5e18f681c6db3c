//! A file of documents: found in one pass, read one by one, never held as a whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use ln_tuning::regular;

use super::settings::Documents;
use crate::progress;
use crate::train::digest::Digest;

pub struct Records {
    path: PathBuf,
    file: Mutex<File>,
    spans: Vec<Span>,
    pub digest: String,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    len: usize,
    /// The line where it starts, from 1.
    line: usize,
}

impl Records {
    /// Blank lines are no documents.
    pub fn scan(path: &Path, documents: Documents) -> Result<Self> {
        let place = || format!("cannot read the data '{}'", path.display());
        let file = regular::open(path).with_context(place)?;
        let bar = progress::bytes("reading", file.metadata().with_context(place)?.len())?;
        let mut reader = BufReader::new(file);
        let (mut spans, mut digest) = (Vec::<Span>::new(), Digest::new());
        let (mut line, mut start, mut open, mut bytes) = (0, 0_u64, false, Vec::new());
        loop {
            bytes.clear();
            let len = reader.read_until(b'\n', &mut bytes).with_context(place)?;
            if len == 0 {
                break;
            }
            line += 1;
            digest.add(&bytes);
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
            bar.set_position(start);
        }
        bar.finish_and_clear();
        let file = Mutex::new(reader.into_inner());
        Ok(Records { path: path.to_owned(), file, spans, digest: digest.text() })
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The file and the line of a document.
    pub fn place(&self, record: usize) -> String {
        format!("{}:{}", self.path.display(), self.spans[record].line)
    }

    /// Its text, without the line's end.
    pub fn text(&self, record: usize) -> Result<String> {
        let span = self.spans[record];
        let mut bytes = vec![0; span.len];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(span.start))?;
        file.read_exact(&mut bytes).context("the file was changed during the run")?;
        drop(file);
        let text = String::from_utf8(bytes).context("this is not UTF-8 text")?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    }
}
