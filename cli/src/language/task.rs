//! Training a language model on the pieces of a corpus.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ln_tuning::atomic;
use ln_tuning::loss::{Reduction, IGNORE_INDEX};
use ln_tuning::models::{DecoderConfig, Inputs};
use ln_tuning::recompute::Tape;
use tch::{Device, Kind, Tensor};

use super::batch::{padded, Seen, Shown, TokenRows};
use super::corpus::{Corpus, Part};
use super::encoder::TextEncoder;
use super::features::{Features, Key};
use super::image_tokens::Grid;
use super::model::LanguageModel;
use super::packing::{pack, ROWS};
use super::pictures::Picture;
use super::settings::LanguageData;
use super::sizes::Sizes;
use crate::text::files::TextFiles;
use crate::train::batches::Job;
use crate::train::example::Example;
use crate::train::order::Random;
use crate::train::settings::RunSettings;
use crate::train::task::{numbers, Batch, Extent, Load, Of, OfRun, Scores, Task};

pub struct LanguageTask<'m> {
    model: &'m LanguageModel,
    /// Rows hold several documents.
    packing: bool,
    loader: Arc<LanguageLoader>,
    words: TextFiles,
}

pub struct LanguageLoader {
    encoder: TextEncoder,
    config: DecoderConfig,
    device: Device,
    /// That of the weights, which pictures get.
    kind: Kind,
    /// The tower's output for pictures, if that is kept.
    features: Option<Features>,
    /// Lengths are multiples of it.
    multiple: i64,
    /// The labels to train on are sent to the device.
    sends_labels: bool,
    train: Rows,
    eval: Option<Rows>,
}

/// Rows of one or, packed, several pieces each.
struct Rows {
    corpus: Corpus,
    /// The places of each row's pieces in the corpus.
    rows: Vec<Vec<usize>>,
}

impl Rows {
    /// Rows of up to so many tokens, or of one piece each.
    fn new(corpus: Corpus, packed: Option<u32>, seed: Option<u64>) -> Self {
        let lengths: Vec<u32> = corpus.pieces.iter().map(|piece| piece.len).collect();
        let random = seed.map(|seed| Random::new(seed, ROWS));
        let rows = match packed {
            Some(length) => pack(&lengths, length, random),
            None => (0..lengths.len()).map(|piece| vec![piece]).collect(),
        };
        Rows { corpus, rows }
    }

    /// Tokens of a row.
    fn width(&self, row: usize) -> u32 {
        self.rows[row].iter().map(|piece| self.corpus.pieces[*piece].len).sum()
    }

    /// The row has a picture.
    fn shows(&self, row: usize) -> bool {
        self.rows[row].iter().any(|piece| self.corpus.pieces[*piece].shows)
    }

    fn widths(&self) -> impl Iterator<Item = u32> + '_ {
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

impl<'m> LanguageTask<'m> {
    pub fn new(
        model: &'m LanguageModel,
        device: Device,
        encoder: TextEncoder,
        train: Corpus,
        eval: Option<Corpus>,
        words: TextFiles,
        run: &RunSettings<LanguageData>,
    ) -> Self {
        let data = &run.data;
        let seed = run.files.shuffle.then_some(run.common.seed);
        let packing = data.packing.unwrap_or(encoder.packs());
        let packed = packing.then_some(data.max_length as u32);
        let train = Rows::new(train, packed, seed);
        let eval = eval.map(|eval| Rows::new(eval, packed, None));
        let (config, multiple) = (model.config().clone(), run.files.multiple(device) as i64);
        let features =
            data.features_mb.map(|megabytes| Features::new(megabytes.saturating_mul(1_000_000)));
        let loader = Arc::new(LanguageLoader {
            encoder,
            config,
            device,
            kind: model.kind(),
            features,
            multiple,
            sends_labels: run.common.sends_labels(device),
            train,
            eval,
        });
        LanguageTask { model, packing, loader, words }
    }

    fn loss_of<'t>(
        &'t self,
        batch: &Of<Self>,
        train: bool,
        reduction: Reduction,
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Tensor> {
        let seen = batch.inputs.seen(self.model, train, self.loader.features.as_ref())?;
        self.model.loss(batch.inputs.inputs(&seen, train), &batch.labels, reduction, tape)
    }
}

/// Batches of several runs as one.
struct Together {
    rows: TokenRows,
    labels: Tensor,
}

impl Together {
    fn new(batches: &[OfRun<LanguageTask>]) -> ln_tuning::Result<Self> {
        let own: Vec<&TokenRows> = batches.iter().map(|of| &of.batch.inputs).collect();
        let rows = TokenRows::together(&own)?;
        let labels = batches.iter().map(|of| &of.batch.labels);
        let labels = padded(labels, rows.length(), |_| IGNORE_INDEX)?;
        Ok(Together { rows, labels })
    }
}

/// The adapter of each row.
fn names<'b>(batches: &[OfRun<'b, LanguageTask>]) -> Vec<&'b str> {
    let names = batches.iter().map(|of| (of.adapter, of.batch.inputs.rows()));
    names.flat_map(|(adapter, rows)| (0..rows).map(move |_| adapter)).collect()
}

/// The loss of each batch, from those of the rows.
fn sums(batches: &[OfRun<LanguageTask>], rows: &Tensor) -> ln_tuning::Result<Vec<Tensor>> {
    let mut start = 0;
    let losses = batches.iter().map(|of| {
        let own = of.batch.inputs.rows();
        let sum = rows.f_narrow(0, start, own)?.f_sum(rows.f_kind()?)?;
        start += own;
        Ok(sum.f_div(&Tensor::from(of.over as f64).f_to_device(sum.device())?)?)
    });
    losses.collect()
}

impl Task for LanguageTask<'_> {
    type Loader = LanguageLoader;

    fn loader(&self) -> Arc<LanguageLoader> {
        self.loader.clone()
    }

    fn lengths(&self) -> Vec<u32> {
        // Packed rows are all about as long.
        self.loader.train.widths().map(|width| if self.packing { 0 } else { width }).collect()
    }

    fn eval_rows(&self) -> usize {
        self.loader.eval.as_ref().map_or(0, |eval| eval.rows.len())
    }

    fn largest(&self, size: usize) -> Vec<Vec<usize>> {
        let train = &self.loader.train;
        let mut rows: Vec<usize> = (0..train.rows.len()).collect();
        rows.sort_by_key(|row| Reverse((train.width(*row), train.rows[*row].len())));
        // Texts may be longer than all rows with pictures, and what sees gets no gradient from them.
        let seen = match rows.iter().position(|row| train.shows(*row)) {
            Some(at) if at >= size => vec![vec![rows[at]]],
            _ => Vec::new(),
        };
        rows.truncate(size);
        [vec![rows], seen].concat()
    }

    fn idle(&self) -> Option<&'static str> {
        let LanguageLoader { encoder, train, .. } = &*self.loader;
        let blind = encoder.vision.is_some() && !(0..train.rows.len()).any(|row| train.shows(row));
        blind.then_some(
            "No row has a picture. To learn from texts alone, leave out what sees, with \
             adapter.exclude_modules='.*(vision|projector|connector).*'",
        )
    }

    fn loss<'t>(
        &'t self,
        batch: &Of<Self>,
        over: i64,
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Tensor> {
        self.loss_of(batch, true, Reduction::SumOver(over), tape)
    }

    fn graph_inputs<'b>(&self, batch: &'b Of<Self>) -> Result<Vec<&'b Tensor>, &'static str> {
        let TokenRows { ids, documents, .. } = &batch.inputs;
        if self.loader.encoder.vision.is_some() {
            return Err("a model that sees counts the tokens of pictures on the host");
        }
        Ok([ids, &batch.labels].into_iter().chain(documents).collect())
    }

    fn loss_of_inputs(&self, like: &Of<Self>, inputs: &[Tensor]) -> ln_tuning::Result<Tensor> {
        let rows = TokenRows {
            ids: inputs[0].shallow_clone(),
            documents: inputs.get(2).map(Tensor::shallow_clone),
            reach: like.inputs.reach,
            pictures: Vec::new(),
            sizes: Sizes::default(),
        };
        self.model.loss(
            rows.inputs(&Seen::Nothing, true),
            &inputs[1],
            Reduction::Sum,
            &mut Tape::off(),
        )
    }

    fn losses<'t>(
        &'t self,
        batches: &[Of<Self>],
        over: i64,
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Vec<Tensor>> {
        let kept = self.loader.features.as_ref();
        let seen = batches.iter().map(|batch| batch.inputs.seen(self.model, true, kept));
        let seen = seen.collect::<ln_tuning::Result<Vec<_>>>()?;
        let batches: Vec<(Inputs, &Tensor)> = batches
            .iter()
            .zip(&seen)
            .map(|(batch, seen)| (batch.inputs.inputs(seen, true), &batch.labels))
            .collect();
        self.model.losses(&batches, Reduction::SumOver(over), tape)
    }

    fn extent(&self, batch: &Of<Self>) -> Result<Extent, &'static str> {
        let inputs = &batch.inputs;
        if !inputs.pictures.is_empty() {
            return Err("rows with pictures go through the model by themselves");
        }
        let config = self.model.config();
        if config.has_dropout() {
            return Err("the model has dropout, and each run draws as it would alone");
        }
        // Some ropes depend on the longest row: those of one kind have one number here.
        let like = config.padded_length(inputs.reach, 1 << 40);
        Ok(Extent { rows: inputs.rows() as u64, length: inputs.length() as u64, like })
    }

    fn losses_together<'t>(
        &'t self,
        lists: &[Vec<OfRun<Self>>],
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Vec<Vec<Tensor>>> {
        let all = lists.iter().map(|batches| Together::new(batches));
        let all = all.collect::<ln_tuning::Result<Vec<_>>>()?;
        let names: Vec<Vec<&str>> = lists.iter().map(|batches| names(batches)).collect();
        let batches = all.iter().zip(&names).map(|(all, names)| {
            (all.rows.inputs(&Seen::Nothing, true).adapter_names(names), &all.labels)
        });
        let batches: Vec<(Inputs, &Tensor)> = batches.collect();
        let rows = self.model.losses(&batches, Reduction::SumPerRow, tape)?;
        lists.iter().zip(rows).map(|(batches, rows)| sums(batches, &rows)).collect()
    }

    fn goes_block_by_block(&self) -> bool {
        self.model.is_streamed()
    }

    /// The sum of the loss, and the targets.
    fn evaluate(
        &self,
        batches: &mut dyn Iterator<Item = Result<Of<Self>>>,
    ) -> Result<Vec<Vec<f64>>> {
        let (mut sums, mut targets) = (Vec::new(), Vec::new());
        for batch in batches {
            let batch = batch?;
            sums.push(self.loss_of(&batch, false, Reduction::Sum, &mut Tape::off())?);
            targets.push(batch.targets as f64);
        }
        // Only now, so that the device is waited for once.
        let sums = numbers(&sums)?;
        Ok(sums.into_iter().zip(targets).map(|(sum, targets)| vec![sum, targets]).collect())
    }

    fn scores(&self, batches: &[Vec<f64>]) -> Result<Scores> {
        let all = |at: usize| batches.iter().map(|batch| batch[at]).sum::<f64>();
        let loss = all(0) / all(1).max(1.);
        Ok(vec![("eval_loss", loss), ("perplexity", loss.exp())])
    }

    fn unit(&self) -> &'static str {
        "tokens"
    }

    fn describe(&self) -> Vec<String> {
        let (train, eval) = (&self.loader.train, &self.loader.eval);
        let mut lines = vec![format!("training on {}", train.corpus.report)];
        if self.packing {
            let (rows, tokens) = (train.rows.len(), train.widths().map(u64::from).sum::<u64>());
            let mean = tokens as f64 / rows as f64;
            lines.push(format!("packed into {rows} rows, {mean:.0} tokens each"));
        } else if !self.loader.encoder.packs() {
            lines.push("one document a row: the model takes no several (data.packing)".into());
        }
        lines.extend(eval.iter().map(|eval| format!("evaluating on {}", eval.corpus.report)));
        lines
    }

    fn example(&self) -> Result<Example> {
        let LanguageLoader { encoder, train, .. } = &*self.loader;
        let piece = train.corpus.pieces.first().context("the data is empty")?;
        let Part { ids, learned, .. } = train.corpus.part(piece, encoder)?;
        encoder.example(train.corpus.place(piece), &ids, &learned)
    }

    fn digest(&self) -> String {
        let eval = self.loader.eval.as_ref().map_or("", |eval| eval.corpus.digest());
        format!("{} {eval}", self.loader.train.corpus.digest())
    }

    /// The tokenizer of a GGUF file, which Python cannot read from it as it is.
    fn add_files(&self, adapter: &Path) -> Result<()> {
        let file = |(name, text): (&str, &str)| (adapter.join(name), text.as_bytes().to_vec());
        let files: Vec<_> = self.words.for_adapter().into_iter().map(file).collect();
        Ok(atomic::write(&files)?)
    }
}
