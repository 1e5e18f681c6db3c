//! The documents of a file as pieces of tokens: how many, how long, and where.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{bail, ensure, Context, Result};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::columns::Columns;
use super::document::{self, Read, Reading};
use super::encoder::{TextEncoder, Tokens};
use super::image_tokens::Grid;
use super::pictures::Picture;
use super::settings::LanguageData;
use super::vision::Vision;
use crate::progress;
use crate::records::digest::Digest;
use crate::records::keys::KeyCounts;
use crate::records::Records;
use crate::train::data::Bad;
use crate::train::order;
use crate::train::run_settings::RunSettings;

/// Documents that make several pieces are kept, since the pieces come one after another.
const KEPT: usize = 16;

/// A part of a document that fits into a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub record: u32,
    pub start: u32,
    pub len: u32,
    /// Tokens that the loss is on.
    pub targets: u32,
    /// It has a picture.
    pub shows: bool,
}

#[derive(Clone)]
pub struct Corpus {
    source: Arc<Source>,
    pub pieces: Vec<Piece>,
    pub report: String,
}

struct Source {
    records: Records,
    columns: Columns,
    /// The marks of pictures in texts.
    marks: Vec<String>,
    /// The folder of the pictures.
    images: PathBuf,
    largest_id: Option<u32>,
    /// A number for the data, and for the lengths of the pictures.
    digest: String,
    kept: Mutex<VecDeque<(usize, Arc<Loaded>)>>,
}

/// The tokens of a document, and its pictures with the tiles that they have among the tokens.
struct Loaded {
    tokens: Tokens,
    pictures: Vec<(Picture, Grid)>,
}

/// A piece of a document.
pub struct Part {
    pub ids: Vec<i64>,
    /// For each id, whether the loss is on it.
    pub learned: Vec<bool>,
    pub pictures: Vec<(Picture, Grid)>,
}

impl Corpus {
    /// Reads and tokenises the whole file once, so that bad lines are found and lengths are known.
    pub fn open(
        path: &Path,
        encoder: &TextEncoder,
        run: &RunSettings<LanguageData>,
    ) -> Result<Self> {
        let data = &run.data;
        data.columns.check_distinct()?;
        let records = Records::open(path, data.format, data.documents)?;
        let beside = || path.parent().unwrap_or(Path::new("")).to_owned();
        let mut source = Source {
            digest: records.digest.clone(),
            records,
            columns: data.columns.clone(),
            marks: encoder.marks(),
            images: data.images.clone().unwrap_or_else(beside),
            largest_id: None,
            kept: Mutex::default(),
        };
        let found = source.look_through(encoder, data, run.common.workers)?;
        let (mut pieces, mut bad, mut tokens, mut cut, mut idle) =
            (Vec::new(), Bad::default(), 0, 0, 0);
        let (mut pictures, mut lengths) = (0, Digest::new());
        let (mut unread, mut absent) = (KeyCounts::default(), KeyCounts::default());
        for (record, document) in found.into_iter().enumerate() {
            match document {
                Ok(document) => {
                    source.largest_id = source.largest_id.max(document.largest_id);
                    tokens += document.tokens;
                    cut += usize::from(document.cut);
                    pictures += document.lengths.len();
                    document.lengths.iter().for_each(|length| lengths.add(&length.to_le_bytes()));
                    idle += usize::from(document.pieces.is_empty());
                    let place = |piece| Piece { record: record as u32, ..piece };
                    pieces.extend(document.pieces.into_iter().map(place));
                    unread.add(document.unread);
                    absent.add(document.absent);
                }
                Err(error) => bad.add(source.records.place(record), &error),
            }
        }
        run.files.refuse(path, &bad)?;
        source.columns.check(&absent, source.records.len() - bad.count, &unread)?;
        if pieces.is_empty() {
            bail!("'{}' holds no document with anything to learn from", path.display());
        }
        let mut report = format!(
            "'{}': {} documents, {tokens} tokens, {} pieces of up to {}",
            path.display(),
            source.records.len() - bad.count,
            pieces.len(),
            data.max_length
        );
        if pictures > 0 {
            source.digest += &lengths.text();
        }
        for (count, what) in [
            (pictures, "pictures"),
            (bad.count, "bad lines skipped"),
            (cut, "cut off at 'data.max_length'"),
            (idle, "without anything that the loss is on"),
        ] {
            if count > 0 {
                report += &format!("; {count} {what}");
            }
        }
        report.extend(unread.report().map(|words| format!("; {words}")));
        Ok(Corpus { source: Arc::new(source), pieces, report })
    }

    /// A part of the documents, chosen by the seed, and the others.
    pub fn split(self, fraction: f64, seed: u64) -> (Self, Self) {
        let mut records: Vec<u32> = self.pieces.iter().map(|piece| piece.record).collect();
        records.dedup();
        let (part, _) = order::split(records.len(), fraction, seed);
        let part: Vec<u32> = part.into_iter().map(|place| records[place]).collect();
        let of = |inside: bool| {
            let kept = |piece: &&Piece| part.binary_search(&piece.record).is_ok() == inside;
            let pieces: Vec<Piece> = self.pieces.iter().filter(kept).copied().collect();
            let report = format!("{} pieces of {}", pieces.len(), self.report);
            Corpus { source: self.source.clone(), pieces, report }
        };
        (of(true), of(false))
    }

    /// Without what has no picture, which teaches nothing where all that trains is for pictures.
    ///
    /// # Errors
    /// If nothing is left.
    pub fn with_pictures(mut self) -> Result<Self> {
        let all = self.pieces.len();
        self.pieces.retain(|piece| piece.shows);
        ensure!(
            !self.pieces.is_empty(),
            "no row has a picture, and all that trains is for pictures: give rows with pictures, or choose other modules, \
             such as 'recipe: layernorm-simple'"
        );
        let without = all - self.pieces.len();
        if without > 0 {
            self.report += &format!(
                "; {without} pieces without a picture are left out, since all that trains is for pictures"
            );
        }
        Ok(self)
    }

    pub fn digest(&self) -> &str {
        &self.source.digest
    }

    pub fn largest_id(&self) -> Option<u32> {
        self.source.largest_id
    }

    pub fn place(&self, piece: &Piece) -> String {
        self.source.records.place(piece.record as usize)
    }

    pub fn part(&self, piece: &Piece, encoder: &TextEncoder) -> Result<Part> {
        let loaded = self.source.kept(piece, encoder)?;
        let Loaded { tokens, pictures } = &*loaded;
        let range = piece.start as usize..(piece.start + piece.len) as usize;
        let ids = tokens.ids.get(range.clone()).context("the file was changed during the run")?;
        let ids = ids.iter().map(|id| i64::from(*id)).collect();
        let mut learned = tokens.counted[range].to_vec();
        // The first token has nothing to be learned from.
        learned.iter_mut().take(1).for_each(|first| *first = false);
        Ok(Part { ids, learned, pictures: pictures.clone() })
    }
}

/// The contents of a document.
#[derive(Default)]
struct Document {
    tokens: usize,
    largest_id: Option<u32>,
    pieces: Vec<Piece>,
    cut: bool,
    /// The lengths of its pictures' files.
    lengths: Vec<u64>,
    /// Keys of the row that nobody reads.
    unread: Vec<String>,
    /// Names of `data.columns` that the row does not have.
    absent: Vec<String>,
}

impl Document {
    fn of(tokens: &Tokens, max_length: usize) -> Result<Self> {
        ensure!(
            tokens.seen <= max_length,
            "a picture ends at token {}, and would be cut at 'data.max_length' {max_length}: set that higher, or leave \
             pictures or text before it out",
            tokens.seen
        );
        let mut document = Document {
            tokens: tokens.ids.len(),
            cut: tokens.whole && tokens.ids.len() > max_length,
            ..Document::default()
        };
        let mut start = 0;
        while start < tokens.ids.len() && (start == 0 || !tokens.whole) {
            let end = (start + max_length).min(tokens.ids.len());
            // The first token of a piece is no target.
            let targets = tokens.counted[start + 1..end].iter().filter(|counted| **counted).count();
            if targets > 0 {
                document.pieces.push(Piece {
                    record: 0,
                    start: start as u32,
                    len: (end - start) as u32,
                    targets: targets as u32,
                    shows: tokens.seen > start,
                });
            }
            start = end;
        }
        Ok(document)
    }
}

impl Source {
    fn reading(&self) -> Reading<'_> {
        Reading { columns: &self.columns, marks: &self.marks, images: &self.images }
    }

    fn load(&self, record: usize, encoder: &TextEncoder) -> Result<Loaded> {
        if self.records.is_text() {
            let tokens = encoder.text(&self.records.text(record)?, &[])?;
            return Ok(Loaded { tokens, pictures: Vec::new() });
        }
        let Read { document, pictures, .. } =
            document::read(self.records.row(record)?, &self.reading())?;
        let grids = encoder.grids(&pictures, Vision::known_grid)?;
        let tokens = encoder.document(&document, &grids)?;
        Ok(Loaded { tokens, pictures: pictures.into_iter().zip(grids).collect() })
    }

    fn look_at(&self, record: usize, encoder: &TextEncoder, max_length: usize) -> Result<Document> {
        if self.records.is_text() {
            let tokens = self.load(record, encoder)?.tokens;
            let largest_id = encoder.largest_id(&tokens.ids);
            return Ok(Document { largest_id, ..Document::of(&tokens, max_length)? });
        }
        let row = self.records.row(record)?;
        let absent = self.columns.absent(&row);
        let read = document::read(row, &self.reading())?;
        let grids = encoder.grids(&read.pictures, Vision::grid)?;
        let tokens = encoder.document(&read.document, &grids)?;
        let (largest_id, document) =
            (encoder.largest_id(&tokens.ids), Document::of(&tokens, max_length)?);
        let unread = [read.unread, encoder.unread(&read.document)?].concat();
        let lengths = read.pictures.iter().map(Picture::length).collect();
        Ok(Document { unread, absent, lengths, largest_id, ..document })
    }

    /// Every document, on several threads.
    fn look_through(
        &self,
        encoder: &TextEncoder,
        data: &LanguageData,
        workers: usize,
    ) -> Result<Vec<Result<Document>>> {
        let count = self.records.len();
        let bar = progress::counted("tokenising", count as u64)?;
        let document = |record| {
            bar.inc(1);
            self.look_at(record, encoder, data.max_length)
        };
        let threads = rayon::ThreadPoolBuilder::new().num_threads(workers).build()?;
        let found = threads.install(|| (0..count).into_par_iter().map(document).collect());
        bar.finish_and_clear();
        Ok(found)
    }

    fn kept(&self, piece: &Piece, encoder: &TextEncoder) -> Result<Arc<Loaded>> {
        let record = piece.record as usize;
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, loaded)) = lock().iter().find(|(kept, _)| *kept == record) {
            return Ok(loaded.clone());
        }
        let loaded = Arc::new(self.load(record, encoder)?);
        if loaded.tokens.ids.len() > (piece.start + piece.len) as usize || piece.start > 0 {
            let mut kept = lock();
            kept.push_back((record, loaded.clone()));
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
        Ok(loaded)
    }
}
