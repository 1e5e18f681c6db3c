//! The settings of every run. Their defaults are those of the commented samples.

use std::path::PathBuf;

use anyhow::{bail, ensure, Context, Result};
use clap::ValueEnum;
use ln_tuning::device::{allow_tf32, set_deterministic};
use ln_tuning::pretrained::Frozen;
use ln_tuning::recompute::Recompute;
use ln_tuning::{
    AdamW, AdapterOptions, Decay, Layers, LnTuningConfig, LnTuningModel, Norms, Optimizer,
    Precision, Recipe, Schedule,
};
use serde::Deserialize;
use serde_json::Value;
use tch::Device;

use super::batches::Share;
use super::by_place::ByPlace;
use super::checkpointing::Checkpointing;
use super::ranks::Ranks;
use crate::device::{self, ModelKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TaskName {
    Language,
    /// Also by the names of transformers' pipelines.
    #[serde(alias = "image-classification", alias = "text-classification")]
    #[value(aliases = ["image-classification", "text-classification"])]
    Classifier,
}

/// All settings, but for the data.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    pub model: PathBuf,
    pub out: PathBuf,
    pub resume: Resume,
    pub device: String,
    pub kind: ModelKind,
    pub base: Frozen,
    pub tf32: bool,
    pub deterministic: bool,
    pub threads: Option<i32>,
    pub seed: u64,
    pub adapter: Value,
    pub recipe: Option<Recipe>,
    pub norms: Norms,
    pub layers: Option<Layers>,
    pub precision: Precision,
    pub optimizer: OptimizerSettings,
    pub schedule: ScheduleSettings,
    /// Of one rank.
    pub batch_size: usize,
    pub global_batch_size: Option<usize>,
    pub accumulation: usize,
    pub clip_norm: Option<f64>,
    pub loss_scale: Option<LossScale>,
    pub epochs: u64,
    pub max_steps: Option<u64>,
    pub checkpointing: Checkpointing,
    pub eval_interval: Option<u64>,
    pub save_interval: Option<u64>,
    pub keep_last: usize,
    pub tensorboard: bool,
    pub workers: usize,
    pub cuda_graph: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    Auto,
    Never,
}

#[derive(Debug, Clone, Deserialize)]
pub struct OptimizerSettings {
    pub lr: ByPlace,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: ByPlace,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ScheduleSettings {
    pub name: Decay,
    pub warmup_steps: Option<u64>,
    pub warmup_ratio: f64,
}

/// That of the samples. It gives way to `warmup_steps`.
const WARMUP_RATIO: f64 = 0.03;

/// A number, or `dynamic`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum LossScale {
    Fixed(f64),
    Named(String),
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.model.as_os_str().is_empty(),
            "'model' is not set, expected a directory or a GGUF file"
        );
        for (name, value) in [
            ("batch_size", self.batch_size as u64),
            ("accumulation", self.accumulation as u64),
            ("epochs", self.epochs),
            ("max_steps", self.max_steps.unwrap_or(1)),
            ("eval_interval", self.eval_interval.unwrap_or(1)),
            ("save_interval", self.save_interval.unwrap_or(1)),
            ("keep_last", self.keep_last as u64),
            ("workers", self.workers as u64),
            ("threads", self.threads.unwrap_or(1).max(0) as u64),
        ] {
            ensure!(value > 0, "'{name}' is {value}, expected at least 1");
        }
        if let Some(max) = self.clip_norm {
            ensure!(max > 0. && max.is_finite(), "'clip_norm' is {max}, expected more than 0");
        }
        match &self.loss_scale {
            Some(LossScale::Fixed(scale)) if !(*scale > 0. && scale.is_finite()) => {
                bail!("'loss_scale' is {scale}, expected a number above 0, or dynamic")
            }
            Some(LossScale::Named(name)) if name != "dynamic" => {
                bail!("'loss_scale' is '{name}', expected a number above 0, or dynamic")
            }
            _ => (),
        }
        let ratio = self.schedule.warmup_ratio;
        ensure!((0. ..=1.).contains(&ratio), "'schedule.warmup_ratio' is {ratio}, expected 0 to 1");
        ensure!(
            [0., WARMUP_RATIO].contains(&ratio) || self.schedule.warmup_steps.is_none(),
            "both 'schedule.warmup_steps' and 'schedule.warmup_ratio' are set: leave out one"
        );
        ensure!(
            self.optimizer.lr.default().is_some(),
            "'optimizer.lr' has no 'default', expected one: the rate of all that has none of its own"
        );
        self.recompute().map(drop)
    }

    /// The adapter's configuration. Its keys have been checked: they are those of the default's.
    pub fn adapter(&self) -> Result<LnTuningConfig> {
        let mut config = LnTuningConfig::from_yaml(&serde_yaml::to_string(&self.adapter)?)
            .context("'adapter'")?;
        config.recipe = self.recipe;
        if config.base_model_name_or_path.is_none() {
            config.base_model_name_or_path = Some(self.model.display().to_string());
        }
        Ok(config)
    }

    pub fn adapter_options(&self) -> AdapterOptions {
        AdapterOptions::default().norms(self.norms).layers(self.layers).precision(self.precision)
    }

    /// The rows of each step that a rank trains on.
    pub fn share(&self, ranks: &Ranks) -> Share {
        let Settings { batch_size, accumulation, .. } = *self;
        Share { rank: ranks.rank(), ranks: ranks.size(), batch_size, accumulation }
    }

    /// Rows that stand together in the order of the data, which is thereby the same for any number of ranks.
    pub fn group(&self) -> usize {
        self.global_batch_size.unwrap_or(self.batch_size)
    }

    /// The device of this process, with libtorch set up for it.
    pub fn device(&self, ranks: &Ranks) -> Result<Device> {
        if self.deterministic {
            set_deterministic(true).context("'deterministic'")?;
        }
        if self.tf32 {
            allow_tf32()?;
        }
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads);
        }
        device::of_rank(&self.device, ranks.local())
    }

    /// The fixed factor of the loss in the backward pass; that of the preflight if it is found while training.
    pub fn loss_scale(&self) -> f64 {
        match (&self.loss_scale, self.kind) {
            (Some(LossScale::Fixed(scale)), _) => *scale,
            (_, ModelKind::F16) => 1024.,
            _ => 1.,
        }
    }

    /// True if the factor of the loss is found while training.
    pub fn scales_dynamically(&self) -> bool {
        match &self.loss_scale {
            Some(LossScale::Fixed(_)) => false,
            Some(LossScale::Named(_)) => true,
            None => self.kind == ModelKind::F16,
        }
    }

    /// The optimiser of the first step, of the active adapter.
    pub fn optimizer(&self, tuned: &LnTuningModel) -> Result<Optimizer> {
        self.optimizer_by(|adamw, lr| tuned.optimizer(adamw, lr))
    }

    /// The optimiser of the first step, of an adapter that rows of batches name.
    pub fn optimizer_for(&self, tuned: &LnTuningModel, adapter: &str) -> Result<Optimizer> {
        self.optimizer_by(|adamw, lr| tuned.optimizer_for(adapter, adamw, lr))
    }

    fn optimizer_by(
        &self,
        make: impl FnOnce(AdamW, f64) -> ln_tuning::Result<Optimizer>,
    ) -> Result<Optimizer> {
        let OptimizerSettings { betas, eps, lr, weight_decay } = &self.optimizer;
        let (beta1, beta2, wd) = (betas[0], betas[1], weight_decay.default().unwrap_or(0.));
        let adamw = AdamW { beta1, beta2, wd, eps: *eps, ..AdamW::default() };
        let mut optimizer = make(adamw, self.lr()).context("'optimizer'")?;
        lr.check("optimizer.lr", optimizer.norm_places().into_iter())?;
        weight_decay.check("optimizer.weight_decay", optimizer.norm_places().into_iter())?;
        for (place, weight_decay) in weight_decay.places() {
            optimizer
                .set_weight_decay_norms(place, weight_decay)
                .with_context(|| format!("'optimizer.weight_decay.{}'", place.name()))?;
        }
        self.set_rates(&mut optimizer, 1.)?;
        optimizer.set_loss_scale(self.loss_scale())?;
        Ok(optimizer)
    }

    /// The learning rate, of what has none of its own.
    pub fn lr(&self) -> f64 {
        self.optimizer.lr.default().unwrap_or_default()
    }

    /// Sets all rates to `factor` times the settings.
    pub fn set_rates(&self, optimizer: &mut Optimizer, factor: f64) -> Result<()> {
        optimizer.set_lr(self.lr() * factor)?;
        for (place, lr) in self.optimizer.lr.places() {
            optimizer
                .set_lr_norms(place, lr * factor)
                .with_context(|| format!("'optimizer.lr.{}'", place.name()))?;
        }
        Ok(())
    }

    pub fn schedule(&self, total: u64) -> Schedule {
        let ratio = self.schedule.warmup_ratio;
        let mut warmup = (ratio * total as f64).ceil() as u64;
        if ratio < 1. {
            // The first step of a warm-up has a rate of 0: in a run of one step, nothing would be learned.
            warmup = warmup.min(total.saturating_sub(1));
        }
        Schedule::new(self.schedule.name, self.schedule.warmup_steps.unwrap_or(warmup), total)
    }

    /// True if all blocks keep their activations.
    pub fn keeps_activations(&self) -> bool {
        self.checkpointing.is_none() && !self.base.is_streamed()
    }

    /// Refuses what no step that is captured has, by the name of the setting.
    pub(super) fn check_cuda_graph(&self, ranks: &Ranks) -> Result<()> {
        if !self.cuda_graph {
            return Ok(());
        }
        let cure = "or leave out 'cuda_graph'";
        ensure!(
            self.accumulation == 1,
            "'cuda_graph' is true and 'accumulation' {}: a graph is one batch and one update. Set 'accumulation' to 1, \
             with a larger 'batch_size', {cure}",
            self.accumulation
        );
        ensure!(
            !self.base.is_streamed() && !self.base.is_quantised(),
            "'cuda_graph' is true and 'base' {}: blocks are computed twice beside such a base, which a graph does not \
             hold. Set 'base' to mapped or device, {cure}",
            self.base
        );
        ensure!(
            self.recompute()?.is_none(),
            "'cuda_graph' is true and 'checkpointing' is set: blocks that are computed twice are in no graph. Set \
             'checkpointing' to none, {cure}"
        );
        ensure!(
            ranks.are_one(),
            "'cuda_graph' is true, and there are {} ranks, which add up their gradients in the middle of a step: train \
             in one process, {cure}",
            ranks.size()
        );
        Ok(())
    }

    /// True if the loss finds its labels on the device. It then computes all places, and not those alone that are
    /// learned, whose number differs from step to step. Runs that are equal bit for bit do so with a graph and without.
    pub fn sends_labels(&self, device: Device) -> bool {
        device.is_cuda() && (self.cuda_graph || self.deterministic)
    }

    /// The blocks that are run twice, if any.
    pub fn recompute(&self) -> Result<Option<Recompute>> {
        self.checkpointing.recompute(self.base)
    }
}

/// Settings that may differ between the parts of a run: they change nothing that is computed, but for its rounding.
pub const FREE: [&str; 12] = [
    "task",
    "data.features_mb",
    "resume",
    "save_interval",
    "keep_last",
    "tensorboard",
    "workers",
    "threads",
    "device",
    "deterministic",
    "checkpointing",
    "cuda_graph",
];
