//! The settings of classifiers.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::Deserialize;

use crate::train::settings::{DataSettings, Settings};

#[derive(Debug, Clone, Deserialize)]
pub struct ClassifierData {
    pub format: Format,
    pub text: String,
    pub pair: Option<String>,
    pub label: String,
    pub max_length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Auto,
    Csv,
    Jsonl,
    Images,
}

impl DataSettings for ClassifierData {
    fn check(&self, _settings: &Settings) -> Result<()> {
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
