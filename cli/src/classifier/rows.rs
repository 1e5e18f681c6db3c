//! Rows to learn from: texts or images with their labels.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::regular;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde_json::Value;

use super::folder::Folder;
use super::settings::ClassifierData;
use crate::pictures::head;
use crate::progress;
use crate::records::digest::Digest;
use crate::records::keys::{left, near, KeyCounts};
use crate::records::{self, refuse_data_set, shown, Documents, Records};
use crate::train::data::Bad;
use crate::train::order;
use crate::train::run_settings::RunSettings;

#[derive(Debug, Clone)]
pub struct Row {
    pub input: Input,
    pub label: String,
    /// The file, and the line or the number in it.
    pub place: String,
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
    /// Words about keys, or files, that nobody reads.
    unread: Option<String>,
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
        let data = &run.data;
        // Each with its place.
        let ((found, digest), unread) = if data.format.is_images(path) {
            image_rows(path, run.common.workers)
                .with_context(|| format!("cannot read the data '{}'", path.display()))?
        } else {
            let mut unread = KeyCounts::default();
            (rows_of(path, run, &mut unread)?, unread.report())
        };
        let (mut rows, mut bad) = (Vec::new(), Bad::default());
        for (place, row) in found {
            match row {
                Ok((input, label)) => rows.push(Row { input, label, place }),
                Err(error) => bad.add(place, &error),
            }
        }
        run.files.refuse(path, &bad)?;
        if rows.is_empty() {
            bail!("'{}' holds nothing to learn from", path.display());
        }
        let skipped = bad.count;
        Ok(Rows { path: path.to_owned(), rows, digest, skipped, unread })
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
        self.rows[row].place.clone()
    }

    pub fn report(&self) -> String {
        let what = if self.are_images() { "images" } else { "texts" };
        let mut report = format!("{} {what} of '{}'", self.rows.len(), self.path.display());
        if self.skipped > 0 {
            report += &format!("; {} bad ones skipped", self.skipped);
        }
        report.extend(self.unread.iter().map(|words| format!("; {words}")));
        report
    }
}

/// The rows, or what is wrong with them, with their places; and a number for all of it.
type Found = (Placed, String);

/// Rows with their places.
type Placed = Vec<(String, Result<(Input, String)>)>;

/// The words are about files that are left out.
fn image_rows(path: &Path, workers: usize) -> Result<(Found, Option<String>)> {
    refuse_data_set(path)?;
    let mut digest = Digest::new();
    let Folder { files, left_out } = Folder::open(path, &mut digest)?;
    let row = |(file, label): &(PathBuf, String)| {
        (file.display().to_string(), Ok((Input::Image(file.clone()), label.clone())))
    };
    let mut rows = seen(files.iter().map(row).collect(), workers)?;
    let mut end = 0;
    for class in files.chunk_by(|(_, class), (_, next)| class == next) {
        let begin = end;
        end += class.len();
        // Skipped, they would take the class along.
        if rows[begin..end].iter().all(|(_, row)| row.is_err()) {
            if let (place, Err(error)) = rows.swap_remove(end - 1) {
                bail!("no picture of the class '{}' can be read: {place}: {error:#}", class[0].1);
            }
        }
    }
    let left_out = left_out.report().map(|words| format!("left out: {words}"));
    Ok(((rows, digest.text()), left_out))
}

/// The same, with an error for each picture that is none, or is cut off. On several threads.
fn seen(rows: Placed, workers: usize) -> Result<Placed> {
    if !rows.iter().any(|(_, row)| matches!(row, Ok((Input::Image(_), _)))) {
        return Ok(rows);
    }
    let bar = progress::counted("looking at pictures", rows.len() as u64)?;
    let look = |(place, row): (String, Result<(Input, String)>)| {
        bar.inc(1);
        let row = row.and_then(|(input, label)| {
            if let Input::Image(path) = &input {
                let size =
                    regular::read(path).map_err(Into::into).and_then(|bytes| head::size(&bytes));
                let name = path.display().to_string();
                // In a folder, the place of a picture is its file.
                if place == name {
                    size?;
                } else {
                    size.with_context(|| format!("'{name}'"))?;
                }
            }
            Ok((input, label))
        });
        (place, row)
    };
    let threads = rayon::ThreadPoolBuilder::new().num_threads(workers).build()?;
    let seen = threads.install(|| rows.into_par_iter().map(look).collect());
    bar.finish_and_clear();
    Ok(seen)
}

/// Rows of a file, which hold texts or the paths of pictures.
fn rows_of(
    path: &Path,
    run: &RunSettings<ClassifierData>,
    unread: &mut KeyCounts,
) -> Result<Found> {
    let data = &run.data;
    let records = Records::open(path, data.format, Documents::Lines)?;
    ensure!(
        !records.is_text(),
        "'{}' is a text, expected rows with labels: CSV, TSV, JSON, lines of JSON, or Parquet (data.format)",
        path.display()
    );
    if let Some(names) = records.columns() {
        let label = label_key(data, |key| names.iter().any(|name| name == key));
        let input = data.image.as_deref().unwrap_or(&data.text);
        for name in [Some(input), data.pair.as_deref(), Some(label)].into_iter().flatten() {
            ensure!(
                names.iter().any(|known| known == name),
                "'{}': there is no column '{name}', only {}. The names are set by data.text or data.image, data.pair \
                 and data.label",
                path.display(),
                names.join(", ")
            );
        }
    }
    let bar = progress::counted("reading", records.len() as u64)?;
    let (mut kind, folder) = (None, path.parent().unwrap_or(Path::new("")));
    let row = |record: usize| {
        bar.inc(1);
        let row = records.row(record).and_then(|row| labelled(row, folder, data, &mut kind));
        let row = row.map(|(input, label, left)| {
            unread.add(left);
            (input, label)
        });
        (records.place(record), row)
    };
    let rows = (0..records.len()).map(row).collect();
    bar.finish_and_clear();
    Ok((seen(rows, run.common.workers)?, records.digest))
}

/// The key of the label: datasets and transformers say both `label` and `labels`.
fn label_key(data: &ClassifierData, has: impl Fn(&str) -> bool) -> &str {
    match data.label.as_str() {
        "label" if !has("label") && has("labels") => "labels",
        given => given,
    }
}

/// The text or the picture, the label, and the keys that nobody reads. `kind` is that of the labels before.
fn labelled(
    mut row: records::Row,
    folder: &Path,
    data: &ClassifierData,
    kind: &mut Option<&'static str>,
) -> Result<(Input, String, Vec<String>)> {
    let keys: Vec<String> = row.keys().cloned().collect();
    let label = label_key(data, |key| row.contains_key(key));
    let found = match row.get(label) {
        Some(Value::Array(_)) => bail!(
            "'{label}' is a list: several labels for one row (multi-label) are not implemented, expected one"
        ),
        Some(Value::String(_)) => Some("a string"),
        Some(Value::Number(_)) => Some("a number"),
        Some(Value::Bool(_)) => Some("true or false"),
        _ => None,
    };
    if let (Some(found), Some(before)) = (found, *kind) {
        ensure!(
            found == before,
            "'{label}' is {found}, and {before} in the rows before: write all labels in one way"
        );
    }
    *kind = kind.or(found);
    let mut field = |key: &str| match row.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(Value::Bool(flag)) => Ok(flag.to_string()),
        Some(Value::Null) => Ok(String::new()),
        Some(other) => bail!("'{key}' is {}, expected a string", shown(&other)),
        None => {
            let near = near(key, keys.iter());
            let near = near.map_or(String::new(), |near| format!(" (is it '{near}'?)"));
            bail!(
                "there is no '{key}', only {}{near}. The names are set by data.text or data.image, data.pair and \
                 data.label",
                keys.join(", ")
            )
        }
    };
    let (input, label) = (field(data.image.as_ref().unwrap_or(&data.text))?, field(label)?);
    let pair = data.pair.as_deref().map(&mut field).transpose()?;
    let what = if data.image.is_some() { "path of the picture" } else { "text" };
    ensure!(
        !input.trim().is_empty() && !label.trim().is_empty(),
        "the {what} or the label is empty"
    );
    let input = match data.image {
        Some(_) => Input::Image(folder.join(input)),
        None => Input::Text { text: input, pair },
    };
    Ok((input, label, left(row, REFUSED)?))
}

/// Keys that would change what a classifier learns.
const REFUSED: &[(&[&str], &str)] = &[(
    &["text_pair"],
    "the second text of a pair is read if data.pair names its key. Set it, or take the key away",
)];
