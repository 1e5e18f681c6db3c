//! The settings of language models.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use serde::Deserialize;

use super::columns::Columns;
use crate::records::format::Format;
use crate::records::Documents;
use crate::train::run_settings::DataSettings;

#[derive(Debug, Clone, Deserialize)]
pub struct LanguageData {
    pub format: Format,
    pub columns: Columns,
    /// The folder of pictures; that of the data file without it.
    pub images: Option<PathBuf>,
    /// Megabytes for what a frozen tower makes of pictures; none without it.
    pub features_mb: Option<u64>,
    pub documents: Documents,
    pub max_length: usize,
    /// Wherever the model takes several documents in a row, unless it says something.
    pub packing: Option<bool>,
    pub append_eos: bool,
    pub loss_on: LossOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    Assistant,
    All,
}

impl DataSettings for LanguageData {
    fn check(&self) -> Result<()> {
        let length = self.max_length;
        ensure!(length > 1, "'data.max_length' is {length}, expected 2 or more");
        ensure!(
            self.format != Format::Images,
            "'data.format' is images, which a language model cannot learn from"
        );
        Ok(())
    }
}
