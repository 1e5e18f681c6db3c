//! Rows to learn from: texts or images with their labels.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use ln_tuning::regular;
use serde_json::Value;

use super::images;
use super::settings::{ClassifierData, Format};
use crate::progress;
use crate::train::digest::Digest;
use crate::train::order;
use crate::train::settings::RunSettings;

#[derive(Debug, Clone)]
pub struct Row {
    pub input: Input,
    pub label: String,
    /// The line of the file; 0 for an image, which is a file of its own.
    line: usize,
}

#[derive(Debug, Clone)]
pub enum Input {
    Text { text: String, pair: Option<String> },
    Image(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Rows {
    path: PathBuf,
    pub rows: Vec<Row>,
    pub digest: String,
    skipped: usize,
}

impl Input {
    /// The text, and the second of a pair.
    pub fn texts(&self) -> Option<(&str, Option<&str>)> {
        match self {
            Input::Text { text, pair } => Some((text, pair.as_deref())),
            Input::Image(_) => None,
        }
    }
}

impl Row {
    /// The length of the row: batches are made of rows of about the same.
    pub fn length(&self) -> u32 {
        match &self.input {
            Input::Text { text, pair } => {
                (text.len() + pair.as_ref().map_or(0, String::len)) as u32
            }
            Input::Image(_) => 0,
        }
    }
}

impl Rows {
    pub fn open(path: &Path, run: &RunSettings<ClassifierData>) -> Result<Self> {
        let place = || format!("cannot read the data '{}'", path.display());
        let (data, mut digest) = (&run.data, Digest::new());
        // Each with the place that is named if it is bad.
        let found: Vec<(String, Result<Row>)> = match data.format_of(path) {
            Format::Images => images::folder(path, &mut digest)
                .with_context(place)?
                .into_iter()
                .map(|(file, label)| {
                    let row = images::check(&file).map(|()| Row {
                        input: Input::Image(file.clone()),
                        label,
                        line: 0,
                    });
                    (file.display().to_string(), row)
                })
                .collect(),
            format => {
                let bytes = read(path).with_context(place)?;
                digest.add(&bytes);
                let rows = match format {
                    Format::Csv => csv_rows(&bytes, data).with_context(place)?,
                    _ => jsonl_rows(&bytes, data),
                };
                let named = |(line, row)| (format!("{}:{line}", path.display()), row);
                rows.into_iter().map(named).collect()
            }
        };
        let (mut rows, mut bad) = (Vec::new(), Vec::new());
        for (place, row) in found {
            match row {
                Ok(row) => rows.push(row),
                Err(error) => bad.push(format!("{place}: {error:#}")),
            }
        }
        run.files.refuse(path, &bad)?;
        if rows.is_empty() {
            bail!("'{}' holds nothing to learn from", path.display());
        }
        Ok(Rows { path: path.to_owned(), rows, digest: digest.text(), skipped: bad.len() })
    }

    /// A part of the rows, chosen by the seed, and the others.
    pub fn split(self, fraction: f64, seed: u64) -> (Self, Self) {
        let (part, rest) = order::split(self.rows.len(), fraction, seed);
        let of = |places: &[usize]| Rows {
            rows: places.iter().map(|place| self.rows[*place].clone()).collect(),
            ..self.clone()
        };
        (of(&part), of(&rest))
    }

    pub fn are_images(&self) -> bool {
        self.rows.iter().any(|row| matches!(row.input, Input::Image(_)))
    }

    /// The file and the line of a row.
    pub fn place(&self, row: usize) -> String {
        let row = &self.rows[row];
        match &row.input {
            Input::Image(path) => path.display().to_string(),
            Input::Text { .. } => format!("{}:{}", self.path.display(), row.line),
        }
    }

    pub fn report(&self) -> String {
        let what = if self.are_images() { "images" } else { "texts" };
        let mut report = format!("{} {what} of '{}'", self.rows.len(), self.path.display());
        if self.skipped > 0 {
            report += &format!("; {} bad ones skipped", self.skipped);
        }
        report
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = regular::open(path)?;
    let bar = progress::bytes("reading", file.metadata()?.len())?;
    let mut bytes = Vec::new();
    bar.wrap_read(file).read_to_end(&mut bytes)?;
    bar.finish_and_clear();
    Ok(bytes)
}

fn text_row(text: String, pair: Option<String>, label: String, line: usize) -> Result<Row> {
    if text.trim().is_empty() || label.trim().is_empty() {
        bail!("the text or the label is empty");
    }
    Ok(Row { input: Input::Text { text, pair }, label, line })
}

fn jsonl_rows(bytes: &[u8], data: &ClassifierData) -> Vec<(usize, Result<Row>)> {
    let row = |bytes: &[u8], line: usize| -> Result<Row> {
        let text = std::str::from_utf8(bytes).context("this is not UTF-8 text")?;
        let value: Value = serde_json::from_str(text).context("this is not JSON")?;
        let field = |key: &str| match value.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(Value::Bool(flag)) => Ok(flag.to_string()),
            Some(other) => bail!("'{key}' is {other}, expected a string"),
            None => bail!("there is no '{key}'"),
        };
        let pair = data.pair.as_deref().map(field).transpose()?;
        text_row(field(&data.text)?, pair, field(&data.label)?, line)
    };
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    lines.map(|(at, line)| (at + 1, row(line, at + 1))).collect()
}

fn csv_rows(bytes: &[u8], data: &ClassifierData) -> Result<Vec<(usize, Result<Row>)>> {
    let mut reader = csv::Reader::from_reader(bytes);
    let header = reader.headers()?.clone();
    let column = |key: &str| {
        let found = header.iter().position(|name| name.trim() == key);
        let names = header.iter().collect::<Vec<_>>().join(", ");
        found.with_context(|| format!("there is no column '{key}', only {names}"))
    };
    let (text, label) = (column(&data.text)?, column(&data.label)?);
    let pair = data.pair.as_deref().map(column).transpose()?;
    let mut rows = Vec::new();
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line() as usize;
        let row = match reader.read_record(&mut record) {
            Ok(false) => return Ok(rows),
            Ok(true) => {
                let field = |column: usize| record.get(column).unwrap_or_default().to_owned();
                text_row(field(text), pair.map(field), field(label), line)
            }
            Err(error) => Err(error.into()),
        };
        rows.push((line, row));
    }
}
