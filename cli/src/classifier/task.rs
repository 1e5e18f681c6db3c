//! Training a classifier.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use ln_tuning::atomic;
use ln_tuning::recompute::Tape;
use serde_json::Value;
use tch::{Device, Reduction, Tensor};

use super::labels::Labels;
use super::model::{Classifier, Inputs};
use super::rows::{Input, Rows};
use super::scores::{pearson, spearman, Confusion};
use super::settings::ClassifierData;
use super::texts::Texts;
use crate::pictures::{picture, Processor};
use crate::train::batches::Job;
use crate::train::example::Example;
use crate::train::run_settings::RunSettings;
use crate::train::task::{numbers, Batch, Load, Of, Scores, Task};

pub struct ClassifierTask<'m> {
    model: &'m Classifier,
    /// `config.json`, with the labels.
    config: Value,
    loader: Arc<ClassifierLoader>,
}

pub struct ClassifierLoader {
    train: Rows,
    eval: Option<Rows>,
    labels: Labels,
    preparation: Prepare,
    device: Device,
}

enum Prepare {
    Texts(Box<Texts>),
    Images(Box<Processor>),
}

impl Load for ClassifierLoader {
    type Inputs = Inputs;

    fn load(&self, job: &Job) -> Result<Batch<Inputs>> {
        let all = self.eval.as_ref().filter(|_| job.eval).unwrap_or(&self.train);
        let rows = || job.rows.iter().map(|row| &all.rows[*row]);
        let labels = self.labels.targets(rows().map(|row| row.label.as_str()))?;
        let sent = |tensor: Tensor| ln_tuning::device::sent(&tensor, self.device);
        let count = job.rows.len() as i64;
        let (inputs, size) = match &self.preparation {
            Prepare::Texts(texts) => {
                let given: Vec<_> = rows().filter_map(|row| row.input.texts()).collect();
                let rows = texts.encode(&given)?;
                let shape = [count, rows.length as i64];
                let table = |values: &[i64]| sent(Tensor::f_from_slice(values)?.f_view(shape)?);
                let inputs = Inputs {
                    main: table(&rows.ids)?,
                    mask: rows.padded.then(|| table(&rows.mask)).transpose()?,
                    types: rows.types.as_deref().map(table).transpose()?,
                };
                (inputs, rows.tokens)
            }
            Prepare::Images(processor) => {
                let mut images = Vec::new();
                for row in rows() {
                    if let Input::Image(path) = &row.input {
                        images.push(pixels(processor, path)?);
                    }
                }
                let other = images.iter().find(|image| image.size() != images[0].size());
                if let Some(other) = other {
                    bail!(
                        "pictures of one batch have the shapes {:?} and {:?}: set 'do_center_crop' in the model's \
                         preprocessor_config.json, or batch_size to 1",
                        &images[0].size()[1..],
                        &other.size()[1..]
                    );
                }
                let main = sent(Tensor::f_cat(&images, 0)?)?;
                (Inputs { main, mask: None, types: None }, count as u64)
            }
        };
        let sources: Vec<String> = job.rows.iter().map(|row| all.place(*row)).collect();
        let labels = sent(labels)?;
        Ok(Batch { inputs, labels, targets: count, size, sources: sources.join(", ") })
    }
}

/// `[1, channels, height, width]`
fn pixels(processor: &Processor, path: &Path) -> Result<Tensor> {
    let place = || format!("cannot read the image '{}'", path.display());
    Ok(processor.apply(&picture::read(path)?).with_context(place)?.values)
}

impl<'m> ClassifierTask<'m> {
    pub fn new(
        model: &'m Classifier,
        device: Device,
        train: Rows,
        eval: Option<Rows>,
        labels: Labels,
        run: &RunSettings<ClassifierData>,
    ) -> Result<Self> {
        let dir = &run.common.model;
        let preparation = match model.max_length() {
            Some(longest) => {
                let longest = run.data.max_length.min(longest as usize);
                Prepare::Texts(Box::new(Texts::open(
                    dir,
                    &model.config,
                    longest,
                    run.files.multiple(device),
                )?))
            }
            None => Prepare::Images(Box::new(Processor::of(dir, &model.config)?)),
        };
        let loader = Arc::new(ClassifierLoader { train, eval, labels, preparation, device });
        Ok(ClassifierTask { model, config: model.config.clone(), loader })
    }

    /// With the `config.json` of a head that is not the model's at first.
    pub fn with_config(self, config: Value) -> Self {
        ClassifierTask { config, ..self }
    }

    /// The sum over the batch.
    fn loss_of(&self, logits: &Tensor, labels: &Tensor) -> ln_tuning::Result<Tensor> {
        if self.loader.labels.are_numbers() {
            return Ok(logits.f_squeeze_dim(-1)?.f_mse_loss(labels, Reduction::Sum)?);
        }
        Ok(logits.f_cross_entropy_loss(labels, None::<Tensor>, Reduction::Sum, -100, 0.)?)
    }
}

impl Task for ClassifierTask<'_> {
    type Loader = ClassifierLoader;

    fn loader(&self) -> Arc<ClassifierLoader> {
        self.loader.clone()
    }

    fn lengths(&self) -> Vec<u32> {
        self.loader.train.rows.iter().map(|row| row.length()).collect()
    }

    fn eval_rows(&self) -> usize {
        self.loader.eval.as_ref().map_or(0, |eval| eval.rows.len())
    }

    fn largest(&self, size: usize) -> Vec<Vec<usize>> {
        let rows = &self.loader.train.rows;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|row| Reverse(rows[*row].length()));
        order.truncate(size);
        vec![order]
    }

    fn loss<'t>(
        &'t self,
        batch: &Of<Self>,
        over: i64,
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Tensor> {
        let logits = self.model.logits(&batch.inputs, true, tape)?;
        // In place it takes no memory: where that lacks, tch's other divisions by a number panic.
        Ok(self.loss_of(&logits, &batch.labels)?.f_div_scalar_(over)?)
    }

    fn graph_inputs<'b>(&self, batch: &'b Of<Self>) -> Result<Vec<&'b Tensor>, &'static str> {
        let Inputs { main, mask, types } = &batch.inputs;
        // All batches have types, or none has.
        Ok([main, &batch.labels].into_iter().chain(types).chain(mask).collect())
    }

    fn loss_of_inputs(&self, like: &Of<Self>, inputs: &[Tensor]) -> ln_tuning::Result<Tensor> {
        let Inputs { mask, types, .. } = &like.inputs;
        let mut more = inputs[2..].iter().map(Tensor::shallow_clone);
        let main = inputs[0].shallow_clone();
        let types = types.as_ref().and_then(|_| more.next());
        let mask = mask.as_ref().and_then(|_| more.next());
        let logits = self.model.logits(&Inputs { main, mask, types }, true, &mut Tape::off())?;
        self.loss_of(&logits, &inputs[1])
    }

    /// The sum of the loss, the labels, and the predictions.
    fn evaluate(
        &self,
        batches: &mut dyn Iterator<Item = Result<Of<Self>>>,
    ) -> Result<Vec<Vec<f64>>> {
        let regression = self.loader.labels.are_numbers();
        let mut figures = Vec::new();
        for batch in batches {
            let batch = batch?;
            let logits = self.model.logits(&batch.inputs, false, &mut Tape::off())?;
            figures.push(self.loss_of(&logits, &batch.labels)?);
            let predicted =
                if regression { logits.f_squeeze_dim(-1)? } else { logits.f_argmax(-1, false)? };
            figures.extend([batch.labels, predicted]);
        }
        // Only now, so that the device is waited for once.
        let all = numbers(&figures)?;
        let mut rest = all.as_slice();
        let of_batch = figures.chunks(3).map(|tensors| {
            let count = tensors.iter().map(Tensor::numel).sum();
            let (own, more) = rest.split_at(count);
            rest = more;
            own.to_vec()
        });
        Ok(of_batch.collect())
    }

    fn scores(&self, batches: &[Vec<f64>]) -> Result<Scores> {
        let (mut sum, mut labels, mut predictions) = (0., Vec::new(), Vec::new());
        for batch in batches {
            let (loss, both) = batch.split_first().context("a batch without a loss")?;
            sum += loss;
            let (of_batch, predicted) = both.split_at(both.len() / 2);
            labels.extend_from_slice(of_batch);
            predictions.extend_from_slice(predicted);
        }
        let regression = self.loader.labels.are_numbers();
        let count = labels.len();
        let mut scores = vec![("eval_loss", sum / count.max(1) as f64)];
        if regression {
            scores.push(("pearson", pearson(&labels, &predictions)));
            scores.push(("spearmanr", spearman(&labels, &predictions)));
        } else {
            let mut confusion = Confusion::new(self.loader.labels.names.len());
            for (label, prediction) in labels.iter().zip(predictions) {
                confusion.add(*label as i64, prediction as i64);
            }
            scores.extend([("accuracy", confusion.accuracy()), ("f1", confusion.f1())]);
        }
        Ok(scores)
    }

    fn unit(&self) -> &'static str {
        match self.loader.preparation {
            Prepare::Texts(_) => "tokens",
            Prepare::Images(_) => "images",
        }
    }

    fn describe(&self) -> Vec<String> {
        let mut lines = vec![
            format!("training on {}", self.loader.train.report()),
            self.loader.labels.report(),
        ];
        let eval = self.loader.eval.iter();
        lines.extend(eval.map(|eval| format!("evaluating on {}", eval.report())));
        lines
    }

    fn example(&self) -> Result<Example> {
        let ClassifierLoader { train, preparation, .. } = &*self.loader;
        let row = train.rows.first().context("the data is empty")?;
        let mut example = Example::new(train.place(0));
        let seen = match (row.input.texts(), preparation) {
            (Some(given), Prepare::Texts(texts)) => texts.seen(given)?,
            _ => train.place(0),
        };
        example.push(&seen, false);
        example.push(" → ", false);
        example.push(&row.label, true);
        Ok(example)
    }

    fn digest(&self) -> String {
        let eval = self.loader.eval.as_ref().map_or("", |eval| &eval.digest);
        format!("{} {eval}", self.loader.train.digest)
    }

    /// The labels' names, in the place where transformers looks for them.
    fn add_files(&self, adapter: &Path) -> Result<()> {
        let config = format!("{:#}\n", self.config);
        Ok(atomic::write(&[(adapter.join("config.json"), config.into_bytes())])?)
    }
}
