//! Training a decoder on the pieces of a corpus.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ln_tuning::loss::{LinearCrossEntropy, Reduction, IGNORE_INDEX};
use ln_tuning::models::{Decoder, Inputs};
use ln_tuning::recompute::Recompute;
use ln_tuning::Optimizer;
use tch::{Device, Kind, Tensor};

use crate::corpus::{Corpus, Piece};
use crate::finetune::batches;
use crate::finetune::order::{Random, EPOCHS};
use crate::finetune::prefetch::to_device;
use crate::finetune::task::{Batch, Load, Scores, Task};
use crate::packing::{pack, ROWS};
use crate::settings::LmSettings;
use crate::tokens::TextEncoder;

pub struct LmTask<'m> {
    model: &'m Decoder,
    device: Device,
    loader: Arc<LmLoader>,
    recompute: Option<Recompute>,
    batch_size: usize,
    seed: u64,
    shuffle: bool,
    packing: bool,
    /// Rows of pieces, by their places in the corpus.
    train: Vec<Vec<usize>>,
    eval: Vec<Vec<usize>>,
    largest: Vec<Vec<usize>>,
}

pub struct LmLoader {
    encoder: TextEncoder,
    train: Corpus,
    eval: Option<Corpus>,
}

/// Rows of pieces.
#[derive(Debug, Clone)]
pub struct LmJob {
    eval: bool,
    rows: Vec<Vec<usize>>,
}

/// On the CPU; padding is on the right, where no token looks.
pub struct LmBatch {
    ids: Tensor,
    labels: Tensor,
    /// The number of each token's document, where rows have several.
    documents: Option<Tensor>,
    targets: i64,
    size: u64,
    sources: String,
}

impl Batch for LmBatch {
    fn targets(&self) -> i64 {
        self.targets
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn sources(&self) -> String {
        self.sources.clone()
    }
}

impl LmLoader {
    fn corpus(&self, eval: bool) -> &Corpus {
        self.eval.as_ref().filter(|_| eval).unwrap_or(&self.train)
    }
}

impl Load for LmLoader {
    type Job = LmJob;
    type Batch = LmBatch;

    fn load(&self, job: &LmJob) -> Result<LmBatch> {
        let corpus = self.corpus(job.eval);
        let piece = |place: &usize| -> &Piece { &corpus.pieces[*place] };
        let width = |row: &Vec<usize>| row.iter().map(|p| piece(p).len as usize).sum::<usize>();
        let length = job.rows.iter().map(width).max().unwrap_or(0);
        let packed = job.rows.iter().any(|row| row.len() > 1);
        let cells = length * job.rows.len();
        let (mut ids, mut labels) = (vec![0; cells], vec![IGNORE_INDEX; cells]);
        let mut documents = vec![-1_i64; if packed { cells } else { 0 }];
        let (mut targets, mut size, mut sources) = (0, 0, Vec::new());
        for (row, places) in job.rows.iter().enumerate() {
            let mut at = row * length;
            for (number, place) in places.iter().enumerate() {
                let piece = piece(place);
                let (own, counted) = corpus.tokens(piece, &self.encoder)?;
                for (i, (id, counted)) in own.into_iter().zip(counted).enumerate() {
                    ids[at] = id;
                    // Nothing stands in front of the first.
                    labels[at] = if counted && i > 0 { id } else { IGNORE_INDEX };
                    if packed {
                        documents[at] = number as i64;
                    }
                    at += 1;
                }
                targets += i64::from(piece.targets);
                size += u64::from(piece.len);
                sources.push(corpus.place(piece));
            }
        }
        sources.dedup();
        let shape = [job.rows.len() as i64, length as i64];
        let table = |values: &[i64]| Tensor::f_from_slice(values)?.f_view(shape);
        Ok(LmBatch {
            ids: table(&ids)?,
            labels: table(&labels)?,
            documents: packed.then(|| table(&documents)).transpose()?,
            targets,
            size,
            sources: sources.join(", "),
        })
    }
}

impl<'m> LmTask<'m> {
    pub fn new(
        model: &'m Decoder,
        device: Device,
        encoder: TextEncoder,
        train: Corpus,
        eval: Option<Corpus>,
        settings: &LmSettings,
    ) -> Result<Self> {
        let (common, data) = (&settings.common, &settings.data);
        let rows = |corpus: &Corpus, shuffle: bool| -> Vec<Vec<usize>> {
            let lengths: Vec<u32> = corpus.pieces.iter().map(|piece| piece.len).collect();
            let random = shuffle.then(|| Random::new(common.seed, ROWS));
            match data.packing {
                true => pack(&lengths, data.max_length as u32, random),
                false => (0..lengths.len()).map(|piece| vec![piece]).collect(),
            }
        };
        let (train_rows, eval_rows) = (
            rows(&train, data.common.shuffle),
            eval.as_ref().map(|eval| rows(eval, false)).unwrap_or_default(),
        );
        let mut largest = train_rows.clone();
        let width = |row: &Vec<usize>| row.iter().map(|p| train.pieces[*p].len).sum::<u32>();
        largest.sort_by_key(|row| std::cmp::Reverse((width(row), row.len())));
        largest.truncate(common.batch_size);
        Ok(LmTask {
            model,
            device,
            recompute: common.recompute()?,
            batch_size: common.batch_size,
            seed: common.seed,
            shuffle: data.common.shuffle,
            packing: data.packing,
            train: train_rows,
            eval: eval_rows,
            largest,
            loader: Arc::new(LmLoader { encoder, train, eval }),
        })
    }

    fn loss_of(&self, reduction: Reduction) -> LinearCrossEntropy {
        LinearCrossEntropy::default().reduction(reduction)
    }

    /// Calls `f` with the batch on the device; labels stay, so that what does not count is left out.
    fn with_inputs<R>(
        &self,
        batch: &LmBatch,
        train: bool,
        f: impl FnOnce(Inputs) -> Result<R>,
    ) -> Result<R> {
        let ids = to_device(&batch.ids, self.device)?;
        let documents = batch.documents.as_ref().map(|d| to_device(d, self.device)).transpose()?;
        f(Inputs::new(&ids).documents(documents.as_ref()).train(train))
    }

    fn job(&self, eval: bool, rows: &[usize]) -> LmJob {
        let all = if eval { &self.eval } else { &self.train };
        LmJob { eval, rows: rows.iter().map(|row| all[*row].clone()).collect() }
    }
}

impl Task for LmTask<'_> {
    type Loader = LmLoader;

    fn loader(&self) -> Arc<LmLoader> {
        self.loader.clone()
    }

    fn jobs(&self, epoch: u64) -> Vec<LmJob> {
        let pieces = &self.loader.train.pieces;
        let width = |row: &Vec<usize>| row.iter().map(|p| pieces[*p].len).sum();
        // Packed rows are all about as long.
        let lengths: Vec<u32> =
            self.train.iter().map(|row| if self.packing { 0 } else { width(row) }).collect();
        let random = self.shuffle.then(|| Random::new(self.seed, EPOCHS + epoch));
        let plan = batches::plan(&lengths, self.batch_size, random);
        plan.iter().map(|rows| self.job(false, rows)).collect()
    }

    fn evaluation(&self) -> Vec<LmJob> {
        let rows: Vec<usize> = (0..self.eval.len()).collect();
        rows.chunks(self.batch_size).map(|rows| self.job(true, rows)).collect()
    }

    fn largest(&self) -> Option<LmJob> {
        let rows = self.largest.clone();
        (!rows.is_empty()).then_some(LmJob { eval: false, rows })
    }

    fn backward(&self, batch: &LmBatch, over: i64, optimizer: &mut Optimizer) -> Result<Tensor> {
        let loss = self.loss_of(Reduction::SumOver(over));
        self.with_inputs(batch, true, |inputs| {
            let Some(recompute) = &self.recompute else {
                let loss = self.model.loss(inputs, &batch.labels, &loss)?;
                optimizer.backward(&loss)?;
                return Ok(loss.f_detach()?);
            };
            let scale = optimizer.loss_scale();
            let loss = optimizer.backward_with(|variables| {
                recompute.gradients(variables, |tape| {
                    let loss = self.model.loss_with(inputs, &batch.labels, &loss, tape)?;
                    Ok(loss.f_mul_scalar(scale)?)
                })
            })?;
            Ok(loss.f_div_scalar(scale)?)
        })
    }

    fn evaluate(&self, batches: &mut dyn Iterator<Item = Result<LmBatch>>) -> Result<Scores> {
        let loss = self.loss_of(Reduction::Sum);
        let (mut sum, mut targets) = (Tensor::zeros([], (Kind::Double, self.device)), 0);
        for batch in batches {
            let batch = batch?;
            let part = self.with_inputs(&batch, false, |inputs| {
                Ok(self.model.loss(inputs, &batch.labels, &loss)?)
            })?;
            sum = sum.f_add(&part.f_to_kind(Kind::Double)?)?;
            targets += batch.targets;
        }
        let loss = sum.f_double_value(&[])? / targets.max(1) as f64;
        Ok(vec![("eval_loss", loss), ("perplexity", loss.exp())])
    }

    fn unit(&self) -> &'static str {
        "tokens"
    }

    fn describe(&self) -> Vec<String> {
        let (train, eval) = (&self.loader.train, &self.loader.eval);
        let mut lines = vec![format!("training on {}", train.report)];
        if self.packing {
            let tokens: u64 = train.pieces.iter().map(|piece| u64::from(piece.len)).sum();
            let rows = self.train.len();
            lines.push(format!(
                "packed into {rows} rows, {:.0} tokens each",
                tokens as f64 / rows as f64
            ));
        }
        lines.extend(eval.iter().map(|eval| format!("evaluating on {}", eval.report)));
        lines
    }

    fn digest(&self) -> String {
        let eval = self.loader.eval.as_ref().map_or("", Corpus::digest);
        format!("{} {eval}", self.loader.train.digest())
    }

    fn add_files(&self, _adapter: &Path) -> Result<()> {
        Ok(())
    }
}
