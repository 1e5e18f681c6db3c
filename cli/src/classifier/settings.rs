//! The settings of classifiers.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::train::data::Data;
use crate::train::settings::{DataSettings, Settings};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassifierData {
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

impl Default for ClassifierData {
    fn default() -> Self {
        ClassifierData {
            common: Data::default(),
            format: Format::Auto,
            text: "text".into(),
            pair: None,
            label: "label".into(),
            max_length: 512,
        }
    }
}

impl DataSettings for ClassifierData {
    fn common(&self) -> &Data {
        &self.common
    }

    fn check(&self, settings: &Settings) -> Result<()> {
        ensure!(
            settings.recompute()?.is_none(),
            "'checkpointing' is for language models: leave it at none"
        );
        let length = self.max_length;
        ensure!(length > 2, "'data.max_length' is {length}, expected 3 or more");
        Ok(())
    }
}

impl ClassifierData {
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
