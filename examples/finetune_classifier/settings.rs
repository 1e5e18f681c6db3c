//! The settings of classifiers.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::finetune::settings::Settings;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassifierSettings {
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
    pub text: String,
    pub pair: Option<String>,
    pub label: String,
    pub bad_lines: BadLines,
    pub shuffle: bool,
    pub max_length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Auto,
    Csv,
    Jsonl,
    Images,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    Stop,
    Skip,
}

impl Default for DataSettings {
    fn default() -> Self {
        DataSettings {
            train: None,
            eval: None,
            eval_fraction: 0.,
            format: Format::Auto,
            text: "text".into(),
            pair: None,
            label: "label".into(),
            bad_lines: BadLines::Stop,
            shuffle: true,
            max_length: 512,
        }
    }
}

impl ClassifierSettings {
    pub fn check(&self) -> Result<()> {
        self.common.check()?;
        ensure!(
            self.common.recompute()?.is_none(),
            "'checkpointing' is for language models: leave it at none"
        );
        let data = &self.data;
        ensure!(
            data.max_length > 2,
            "'data.max_length' is {}, expected 3 or more",
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
        self.train.as_deref().context("'data.train' is not set, expected a file or a folder")
    }

    /// The format of a path; never `Auto`.
    pub fn format_of(&self, path: &Path) -> Format {
        match self.format {
            Format::Auto if path.is_dir() => Format::Images,
            Format::Auto if path.extension().is_some_and(|end| end == "csv") => Format::Csv,
            Format::Auto => Format::Jsonl,
            format => format,
        }
    }
}
