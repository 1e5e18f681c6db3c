//! The settings of every run. Their defaults are those of the commented samples.

use std::path::PathBuf;

use anyhow::{bail, ensure, Context, Result};
use clap::ValueEnum;
use ln_tuning::device::{allow_tf32, set_deterministic};
use ln_tuning::recompute::{Blocks, Recompute};
use ln_tuning::{AdamW, AdapterOptions, Decay, LnTuningConfig, Norms, Precision, Schedule};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;
use tch::Device;

use super::data::Data;
use super::yaml::Tree;
use crate::device::{self, ModelKind};

/// The settings of a run: `data` holds those of the task's data.
pub struct RunSettings<D> {
    pub common: Settings,
    pub files: Data,
    pub data: D,
    /// All of them, as they are kept in checkpoints.
    pub all: Value,
}

/// The settings of a task's data.
pub trait DataSettings: DeserializeOwned {
    fn check(&self) -> Result<()>;
}

impl<D: DataSettings> RunSettings<D> {
    pub fn new(tree: &Tree) -> Result<Self> {
        let run = RunSettings {
            common: tree.parse("")?,
            files: tree.parse("data")?,
            data: tree.parse::<D>("data")?,
            all: tree.to_json()?,
        };
        run.common.check()?;
        run.data.check()?;
        run.files.check()?;
        Ok(run)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TaskName {
    Language,
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
    pub tf32: bool,
    pub deterministic: bool,
    pub threads: Option<i32>,
    pub seed: u64,
    pub adapter: Value,
    pub norms: Norms,
    pub precision: Precision,
    pub optimizer: OptimizerSettings,
    pub schedule: ScheduleSettings,
    pub batch_size: usize,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    Auto,
    Never,
}

#[derive(Debug, Clone, Deserialize)]
pub struct OptimizerSettings {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ScheduleSettings {
    pub name: Decay,
    pub warmup_steps: Option<u64>,
    pub warmup_ratio: f64,
}

/// `none`, `all`, or n: every n-th block.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Checkpointing {
    Every(usize),
    Named(String),
}

/// A number, or `dynamic`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum LossScale {
    Fixed(f64),
    Named(String),
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        ensure!(!self.model.as_os_str().is_empty(), "'model' is not set, expected a directory");
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
            ratio == 0. || self.schedule.warmup_steps.is_none(),
            "both 'schedule.warmup_steps' and 'schedule.warmup_ratio' are set: leave out one"
        );
        self.recompute().map(drop)
    }

    /// The adapter's configuration. Its keys have been checked: they are those of the default's.
    pub fn adapter(&self) -> Result<LnTuningConfig> {
        let mut config = LnTuningConfig::from_yaml(&serde_yaml::to_string(&self.adapter)?)
            .context("'adapter'")?;
        if config.base_model_name_or_path.is_none() {
            config.base_model_name_or_path = Some(self.model.display().to_string());
        }
        Ok(config)
    }

    pub fn adapter_options(&self) -> AdapterOptions {
        AdapterOptions::default().norms(self.norms).precision(self.precision)
    }

    /// The device, with libtorch set up for it.
    pub fn device(&self) -> Result<Device> {
        if self.deterministic {
            set_deterministic(true).context("'deterministic'")?;
        }
        if self.tf32 {
            allow_tf32()?;
        }
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads);
        }
        device::named(&self.device)
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

    pub fn adamw(&self) -> AdamW {
        let OptimizerSettings { betas, eps, weight_decay, .. } = self.optimizer;
        AdamW { beta1: betas[0], beta2: betas[1], wd: weight_decay, eps, ..AdamW::default() }
    }

    pub fn schedule(&self, total: u64) -> Schedule {
        let ratio = (self.schedule.warmup_ratio * total as f64).ceil() as u64;
        Schedule::new(self.schedule.name, self.schedule.warmup_steps.unwrap_or(ratio), total)
    }

    /// The blocks that are run twice, if any.
    pub fn recompute(&self) -> Result<Option<Recompute>> {
        match &self.checkpointing {
            Checkpointing::Named(name) if name == "none" => Ok(None),
            Checkpointing::Named(name) if name == "all" => Ok(Some(Recompute::default())),
            Checkpointing::Every(n) if *n > 0 => Ok(Some(Recompute::new(Blocks::EveryNth(*n)))),
            other => bail!("'checkpointing' is {other:?}, expected none, all or a number above 0"),
        }
    }
}

/// Settings that may differ between the parts of a run: they change nothing that is computed, but for its rounding.
pub const FREE: [&str; 10] = [
    "task",
    "resume",
    "save_interval",
    "keep_last",
    "tensorboard",
    "workers",
    "threads",
    "device",
    "deterministic",
    "checkpointing",
];
