//! The settings of classifiers.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::Deserialize;

use super::problem::ProblemType;
use crate::train::settings::{DataSettings, Settings};

#[derive(Debug, Clone, Deserialize)]
pub struct ClassifierData {
    pub format: Format,
    pub text: String,
    pub pair: Option<String>,
    pub label: String,
    pub problem_type: Option<ProblemType>,
    pub new_head: bool,
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
        ensure!(
            self.problem_type != Some(ProblemType::MultiLabelClassification),
            "'data.problem_type' is multi_label_classification, which is not implemented: each row has one label"
        );
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
