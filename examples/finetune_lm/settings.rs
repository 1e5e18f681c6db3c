//! The settings of language models.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::finetune::data::Data;
use crate::finetune::settings::Settings;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LmSettings {
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

impl Default for DataSettings {
    fn default() -> Self {
        DataSettings {
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

impl LmSettings {
    pub fn check(&self) -> Result<()> {
        self.common.check()?;
        let data = &self.data;
        ensure!(
            data.max_length > 1,
            "'data.max_length' is {}, expected 2 or more",
            data.max_length
        );
        data.common.check()
    }
}

impl DataSettings {
    pub fn is_jsonl(&self, path: &Path) -> bool {
        match self.format {
            Format::Auto => path
                .extension()
                .is_some_and(|end| end == "jsonl" || end == "json" || end == "ndjson"),
            format => format == Format::Jsonl,
        }
    }
}
