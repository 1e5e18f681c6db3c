//! The batches of a corpus: rows of token ids, with the pictures among them.

use anyhow::{Context, Result};
use ln_tuning::loss::IGNORE_INDEX;
use ln_tuning::models::DecoderConfig;
use tch::{Device, Kind, Tensor};

use super::batch::{Shown, TokenRows};
use super::corpus::{Corpus, Part};
use super::encoder::TextEncoder;
use super::features::{Features, Key};
use super::image_tokens::Grid;
use super::packing::{pack, ROWS};
use super::pictures::Picture;
use crate::train::batches::Job;
use crate::train::order::Random;
use crate::train::task::{Batch, Load};

pub struct LanguageLoader {
    pub(super) encoder: TextEncoder,
    pub(super) config: DecoderConfig,
    pub(super) device: Device,
    /// That of the weights, which pictures get.
    pub(super) kind: Kind,
    /// The tower's output for pictures, if that is kept.
    pub(super) features: Option<Features>,
    /// Lengths are multiples of it.
    pub(super) multiple: i64,
    /// The labels to train on are sent to the device.
    pub(super) sends_labels: bool,
    pub(super) train: Rows,
    pub(super) eval: Option<Rows>,
}

/// Rows of one or, packed, several pieces each.
pub(super) struct Rows {
    pub(super) corpus: Corpus,
    /// The places of each row's pieces in the corpus.
    pub(super) rows: Vec<Vec<usize>>,
}

impl Rows {
    /// Rows of up to so many tokens, or of one piece each.
    pub(super) fn new(corpus: Corpus, packed: Option<u32>, seed: Option<u64>) -> Self {
        let lengths: Vec<u32> = corpus.pieces.iter().map(|piece| piece.len).collect();
        let random = seed.map(|seed| Random::new(seed, ROWS));
        let rows = match packed {
            Some(length) => pack(&lengths, length, random),
            None => (0..lengths.len()).map(|piece| vec![piece]).collect(),
        };
        Rows { corpus, rows }
    }

    /// Tokens of a row.
    pub(super) fn width(&self, row: usize) -> u32 {
        self.rows[row].iter().map(|piece| self.corpus.pieces[*piece].len).sum()
    }

    /// The row has a picture.
    pub(super) fn shows(&self, row: usize) -> bool {
        self.rows[row].iter().any(|piece| self.corpus.pieces[*piece].shows)
    }

    pub(super) fn widths(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.rows.len()).map(|row| self.width(row))
    }
}

impl Load for LanguageLoader {
    type Inputs = TokenRows;

    fn load(&self, job: &Job) -> Result<Batch<TokenRows>> {
        let all = self.eval.as_ref().filter(|_| job.eval).unwrap_or(&self.train);
        let rows: Vec<&Vec<usize>> = job.rows.iter().map(|row| &all.rows[*row]).collect();
        let length = job.rows.iter().map(|row| i64::from(all.width(*row))).max().unwrap_or(0);
        let length = self.config.padded_length(length, self.multiple) as usize;
        let packed = rows.iter().any(|row| row.len() > 1);
        let documents = rows.iter().copied().flatten().map(|piece| all.corpus.pieces[*piece].len);
        let reach = if packed { documents.max().map_or(0, i64::from) } else { length as i64 };
        let cells = length * rows.len();
        let (mut ids, mut labels) = (vec![0; cells], vec![IGNORE_INDEX; cells]);
        // Each place of the padding is a document of its own, so that none is longer than those of the data.
        let mut documents: Vec<i64> =
            if packed { (0..cells as i64).map(|at| -1 - at).collect() } else { Vec::new() };
        let (mut targets, mut size, mut sources) = (0, 0, Vec::new());
        let (mut pictures, mut grids) = (Vec::new(), Vec::new());
        for (row, pieces) in rows.iter().enumerate() {
            let mut at = row * length;
            for (number, piece) in pieces.iter().enumerate() {
                let piece = &all.corpus.pieces[*piece];
                let part = all.corpus.part(piece, &self.encoder)?;
                for (number, (picture, grid)) in part.pictures.iter().enumerate() {
                    let key = Key::of(picture, job.eval, piece.record, number);
                    let shown = self.shown(picture, *grid, key);
                    pictures.push(shown.with_context(|| all.corpus.place(piece))?);
                }
                let Part { ids: own, learned, pictures: own_pictures } = part;
                grids.extend(own_pictures.into_iter().map(|(_, grid)| grid));
                for (id, learned) in own.into_iter().zip(learned) {
                    ids[at] = id;
                    labels[at] = if learned { id } else { IGNORE_INDEX };
                    if packed {
                        documents[at] = number as i64;
                    }
                    at += 1;
                }
                targets += i64::from(piece.targets);
                size += u64::from(piece.len);
                sources.push(all.corpus.place(piece));
            }
        }
        sources.dedup();
        let shape = [rows.len() as i64, length as i64];
        let table = |values: &[i64]| Tensor::f_from_slice(values)?.f_view(shape);
        let sent = |values: &[i64]| ln_tuning::device::sent(&table(values)?, self.device);
        let documents = packed.then(|| sent(&documents)).transpose()?;
        // A model that sees counts the tokens of pictures on the CPU, also where there are none, and sends them itself.
        let sees = self.encoder.vision.is_some();
        let ids = if sees { table(&ids)? } else { sent(&ids)? };
        // The loss leaves out what does not count, and looks for it on the CPU.
        let stay = !self.sends_labels || job.eval || sees;
        let labels = if stay { table(&labels)? } else { sent(&labels)? };
        Ok(Batch {
            inputs: TokenRows {
                ids,
                documents,
                reach,
                pictures,
                sizes: self.encoder.sizes(&grids)?,
            },
            labels,
            targets,
            size,
            sources: sources.join(", "),
        })
    }
}

impl LanguageLoader {
    fn shown(&self, picture: &Picture, grid: Grid, key: Key) -> Result<Shown> {
        let kept = self.features.as_ref().and_then(|features| features.get(&key));
        if let Some(features) = kept {
            return Ok(Shown::Features(features));
        }
        let vision = self.encoder.vision.as_ref().context("the model takes text alone")?;
        let values = vision.pixels(picture, grid)?.f_to_kind(self.kind)?;
        Ok(Shown::Pixels { key, values: ln_tuning::device::sent(&values, self.device)? })
    }
}
