//! The settings of language models.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::finetune::settings::Settings;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LmSettings {
    #[serde(flatten)]
    pub common: Settings,
    pub data: DataSettings,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    pub train: Option<PathBuf>,
    pub eval: Option<PathBuf>,
    pub eval_fraction: f64,
    pub format: Format,
    pub documents: Documents,
    pub bad_lines: BadLines,
    pub shuffle: bool,
    pub max_length: usize,
    pub packing: bool,
    pub append_eos: bool,
    pub loss_on: LossOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Auto,
    Text,
    Jsonl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    Paragraphs,
    Lines,
    File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    Stop,
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    Assistant,
    All,
}

impl Default for DataSettings {
    fn default() -> Self {
        DataSettings {
            train: None,
            eval: None,
            eval_fraction: 0.,
            format: Format::Auto,
            documents: Documents::Paragraphs,
            bad_lines: BadLines::Stop,
            shuffle: true,
            max_length: 1024,
            packing: true,
            append_eos: true,
            loss_on: LossOn::Assistant,
        }
    }
}

impl LmSettings {
    pub fn check(&self) -> Result<()> {
        self.common.check()?;
        let data = &self.data;
        ensure!(
            data.max_length > 1,
            "'data.max_length' is {}, expected 2 or more",
            data.max_length
        );
        let fraction = data.eval_fraction;
        ensure!(
            (0. ..1.).contains(&fraction),
            "'data.eval_fraction' is {fraction}, expected 0 or more and below 1"
        );
        ensure!(
            fraction == 0. || data.eval.is_none(),
            "both 'data.eval' and 'data.eval_fraction' are set: leave out one"
        );
        data.train().map(drop)
    }
}

impl DataSettings {
    pub fn train(&self) -> Result<&Path> {
        self.train.as_deref().context("'data.train' is not set, expected a file")
    }

    pub fn is_jsonl(&self, path: &Path) -> bool {
        match self.format {
            Format::Auto => path
                .extension()
                .is_some_and(|end| end == "jsonl" || end == "json" || end == "ndjson"),
            format => format == Format::Jsonl,
        }
    }
}
