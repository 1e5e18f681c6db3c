//! Training a language model on the pieces of a corpus.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ln_tuning::atomic;
use ln_tuning::loss::{Reduction, IGNORE_INDEX};
use ln_tuning::models::Inputs;
use ln_tuning::recompute::Tape;
use tch::{Device, Tensor};

use super::batch::{padded, Seen, TokenRows};
use super::corpus::{Corpus, Part};
use super::encoder::TextEncoder;
use super::features::Features;
use super::loader::{LanguageLoader, Rows};
use super::model::LanguageModel;
use super::settings::LanguageData;
use super::sizes::Sizes;
use crate::text::files::TextFiles;
use crate::train::example::Example;
use crate::train::run_settings::RunSettings;
use crate::train::task::{numbers, Extent, Of, OfRun, Scores, Task};

pub struct LanguageTask<'m> {
    model: &'m LanguageModel,
    /// Rows hold several documents.
    packing: bool,
    loader: Arc<LanguageLoader>,
    words: TextFiles,
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
