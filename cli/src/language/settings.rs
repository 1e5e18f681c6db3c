//! The settings of language models.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::train::data::Data;
use crate::train::settings::{DataSettings, Settings};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct LanguageData {
    #[serde(flatten)]
    pub common: Data,
    pub format: Format,
    pub documents: Documents,
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
pub enum LossOn {
    Assistant,
    All,
}

impl Default for LanguageData {
    fn default() -> Self {
        LanguageData {
            common: Data::default(),
            format: Format::Auto,
            documents: Documents::Paragraphs,
            max_length: 1024,
            packing: true,
            append_eos: true,
            loss_on: LossOn::Assistant,
        }
    }
}

impl DataSettings for LanguageData {
    fn common(&self) -> &Data {
        &self.common
    }

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
