//! The settings of language models.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::Deserialize;

use crate::train::settings::{DataSettings, Settings};

#[derive(Debug, Clone, Deserialize)]
pub struct LanguageData {
    pub format: Format,
    pub documents: Documents,
    pub max_length: usize,
    pub packing: bool,
    pub append_eos: bool,
    pub loss_on: LossOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Auto,
    Text,
    Jsonl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    Paragraphs,
    Lines,
    File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    Assistant,
    All,
}

impl DataSettings for LanguageData {
    fn check(&self, _settings: &Settings) -> Result<()> {
        let length = self.max_length;
        ensure!(length > 1, "'data.max_length' is {length}, expected 2 or more");
        Ok(())
    }
}

impl LanguageData {
    pub fn is_jsonl(&self, path: &Path) -> bool {
        match self.format {
            Format::Auto => path
                .extension()
                .is_some_and(|end| end == "jsonl" || end == "json" || end == "ndjson"),
            format => format == Format::Jsonl,
        }
    }
}
