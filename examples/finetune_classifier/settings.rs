//! The settings of classifiers.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::finetune::data::Data;
use crate::finetune::settings::Settings;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassifierSettings {
    #[serde(flatten)]
    pub common: Settings,
    pub data: DataSettings,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSettings {
    #[serde(flatten)]
    pub common: Data,
    pub format: Format,
    pub text: String,
    pub pair: Option<String>,
    pub label: String,
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

impl Default for DataSettings {
    fn default() -> Self {
        DataSettings {
            common: Data::default(),
            format: Format::Auto,
            text: "text".into(),
            pair: None,
            label: "label".into(),
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
        data.common.check()
    }
}

impl DataSettings {
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
