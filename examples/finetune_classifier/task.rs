//! Training a classifier.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ln_tuning::Optimizer;
use tch::{Device, Kind, Reduction, Tensor};

use crate::classifier::{Classifier, Seen};
use crate::finetune::batches;
use crate::finetune::order::{Random, EPOCHS};
use crate::finetune::prefetch::to_device;
use crate::finetune::task::{Batch, Load, Scores, Task};
use crate::images::Preparation;
use crate::labels::Labels;
use crate::rows::{Input, Rows};
use crate::scores::Confusion;
use crate::settings::ClassifierSettings;
use crate::texts::Texts;

pub struct ClassifierTask<'m> {
    model: &'m Classifier,
    device: Device,
    loader: Arc<ClassifierLoader>,
    batch_size: usize,
    seed: u64,
    shuffle: bool,
}

pub struct ClassifierLoader {
    train: Rows,
    eval: Option<Rows>,
    labels: Labels,
    preparation: Prepare,
}

enum Prepare {
    Texts(Box<Texts>),
    Images(Preparation),
}

#[derive(Debug, Clone)]
pub struct ClassifierJob {
    eval: bool,
    rows: Vec<usize>,
}

/// On the CPU.
pub struct ClassifierBatch {
    inputs: Inputs,
    labels: Tensor,
    size: u64,
    sources: String,
}

enum Inputs {
    Texts { ids: Tensor, mask: Option<Tensor>, types: Option<Tensor> },
    Pixels(Tensor),
}

impl Batch for ClassifierBatch {
    fn targets(&self) -> i64 {
        self.labels.size()[0]
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn sources(&self) -> String {
        self.sources.clone()
    }
}

impl Load for ClassifierLoader {
    type Job = ClassifierJob;
    type Batch = ClassifierBatch;

    fn load(&self, job: &ClassifierJob) -> Result<ClassifierBatch> {
        let all = self.eval.as_ref().filter(|_| job.eval).unwrap_or(&self.train);
        let rows = || job.rows.iter().map(|row| &all.rows[*row]);
        let labels =
            rows().map(|row| self.labels.number(&row.label)).collect::<Result<Vec<_>>>()?;
        let count = job.rows.len() as i64;
        let (inputs, size) = match &self.preparation {
            Prepare::Texts(texts) => {
                let given: Vec<_> = rows().filter_map(|row| row.input.texts()).collect();
                let rows = texts.encode(&given)?;
                let shape = [count, rows.length as i64];
                let table = |values: &[i64]| Tensor::f_from_slice(values)?.f_view(shape);
                let inputs = Inputs::Texts {
                    ids: table(&rows.ids)?,
                    mask: rows.padded.then(|| table(&rows.mask)).transpose()?,
                    types: rows.types.as_deref().map(table).transpose()?,
                };
                (inputs, rows.tokens)
            }
            Prepare::Images(preparation) => {
                let mut pixels = Vec::new();
                for row in rows() {
                    if let Input::Image(path) = &row.input {
                        pixels.extend(preparation.pixels(path)?);
                    }
                }
                let edge = i64::from(preparation.size);
                let shape = [count, preparation.channels as i64, edge, edge];
                (Inputs::Pixels(Tensor::f_from_slice(&pixels)?.f_view(shape)?), count as u64)
            }
        };
        let sources: Vec<String> = job.rows.iter().map(|row| all.place(*row)).collect();
        let labels = Tensor::f_from_slice(&labels)?;
        Ok(ClassifierBatch { inputs, labels, size, sources: sources.join(", ") })
    }
}

impl<'m> ClassifierTask<'m> {
    pub fn new(
        model: &'m Classifier,
        device: Device,
        train: Rows,
        eval: Option<Rows>,
        labels: Labels,
        settings: &ClassifierSettings,
    ) -> Result<Self> {
        let (common, data) = (&settings.common, &settings.data);
        let preparation = match model.max_length() {
            Some(longest) => {
                let longest = data.max_length.min(longest as usize);
                Prepare::Texts(Box::new(Texts::open(&common.model, &model.config, longest)?))
            }
            None => Prepare::Images(Preparation::open(&common.model, &model.config)?),
        };
        Ok(ClassifierTask {
            model,
            device,
            loader: Arc::new(ClassifierLoader { train, eval, labels, preparation }),
            batch_size: common.batch_size,
            seed: common.seed,
            shuffle: data.common.shuffle,
        })
    }

    fn logits(&self, batch: &ClassifierBatch, train: bool) -> Result<Tensor> {
        let moved = |tensor: &Tensor| to_device(tensor, self.device);
        match &batch.inputs {
            Inputs::Texts { ids, mask, types } => {
                let ids = moved(ids)?;
                let mask = mask.as_ref().map(moved).transpose()?;
                let types = types.as_ref().map(moved).transpose()?;
                let (mask, types) = (mask.as_ref(), types.as_ref());
                self.model.logits(&Seen::Text { ids: &ids, mask, types }, train)
            }
            Inputs::Pixels(pixels) => self.model.logits(&Seen::Pixels(&moved(pixels)?), train),
        }
    }

    /// The sum over the batch.
    fn loss(&self, logits: &Tensor, batch: &ClassifierBatch) -> Result<Tensor> {
        let labels = to_device(&batch.labels, self.device)?;
        Ok(logits.f_cross_entropy_loss(&labels, None::<Tensor>, Reduction::Sum, -100, 0.)?)
    }
}

impl Task for ClassifierTask<'_> {
    type Loader = ClassifierLoader;

    fn loader(&self) -> Arc<ClassifierLoader> {
        self.loader.clone()
    }

    fn jobs(&self, epoch: u64) -> Vec<ClassifierJob> {
        let lengths: Vec<u32> = self.loader.train.rows.iter().map(|row| row.length()).collect();
        let random = self.shuffle.then(|| Random::new(self.seed, EPOCHS + epoch));
        let plan = batches::plan(&lengths, self.batch_size, random);
        plan.into_iter().map(|rows| ClassifierJob { eval: false, rows }).collect()
    }

    fn evaluation(&self) -> Vec<ClassifierJob> {
        let rows: Vec<usize> = (0..self.loader.eval.as_ref().map_or(0, |e| e.rows.len())).collect();
        let jobs = rows.chunks(self.batch_size);
        jobs.map(|rows| ClassifierJob { eval: true, rows: rows.to_vec() }).collect()
    }

    fn largest(&self) -> Option<ClassifierJob> {
        let rows = &self.loader.train.rows;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|row| std::cmp::Reverse(rows[*row].length()));
        order.truncate(self.batch_size);
        (!order.is_empty()).then_some(ClassifierJob { eval: false, rows: order })
    }

    fn backward(
        &self,
        batch: &ClassifierBatch,
        over: i64,
        optimizer: &mut Optimizer,
    ) -> Result<Tensor> {
        let loss = self.loss(&self.logits(batch, true)?, batch)?.f_div_scalar(over)?;
        optimizer.backward(&loss)?;
        Ok(loss.f_detach()?)
    }

    fn evaluate(
        &self,
        batches: &mut dyn Iterator<Item = Result<ClassifierBatch>>,
    ) -> Result<Scores> {
        let mut confusion = Confusion::new(self.loader.labels.names.len());
        let (mut sum, mut count) = (0., 0);
        for batch in batches {
            let batch = batch?;
            let logits = self.logits(&batch, false)?;
            sum += self.loss(&logits, &batch)?.f_double_value(&[])?;
            count += batch.targets();
            let predictions = logits.f_argmax(-1, false)?.f_to_kind(Kind::Int64)?;
            let predictions = Vec::<i64>::try_from(predictions.f_to_device(Device::Cpu)?)?;
            for (label, prediction) in Vec::<i64>::try_from(&batch.labels)?.iter().zip(predictions)
            {
                confusion.add(*label, prediction);
            }
        }
        let loss = sum / count.max(1) as f64;
        Ok(vec![("eval_loss", loss), ("accuracy", confusion.accuracy()), ("f1", confusion.f1())])
    }

    fn unit(&self) -> &'static str {
        match self.loader.preparation {
            Prepare::Texts(_) => "tokens",
            Prepare::Images(_) => "images",
        }
    }

    fn describe(&self) -> Vec<String> {
        let Labels { names, of_model } = &self.loader.labels;
        let shown = names.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        let more = if names.len() > 10 { ", …" } else { "" };
        let head = if *of_model { "the model's own head" } else { "a new head" };
        let mut lines = vec![
            format!("training on {}", self.loader.train.report()),
            format!("{} labels, {head}: {shown}{more}", names.len()),
        ];
        let eval = self.loader.eval.iter();
        lines.extend(eval.map(|eval| format!("evaluating on {}", eval.report())));
        lines
    }

    fn digest(&self) -> String {
        let eval = self.loader.eval.as_ref().map_or("", |eval| &eval.digest);
        format!("{} {eval}", self.loader.train.digest)
    }

    /// The labels' names, in the place where transformers looks for them.
    fn add_files(&self, adapter: &Path) -> Result<()> {
        let config = format!("{:#}\n", self.model.config);
        crate::finetune::checkpoint::replace(&adapter.join("config.json"), config.as_bytes())
    }
}
