//! The settings of classifiers.

use anyhow::{ensure, Result};
use serde::Deserialize;

use super::problem::ProblemType;
use crate::records::format::Format;
use crate::train::run_settings::DataSettings;

#[derive(Debug, Clone, Deserialize)]
pub struct ClassifierData {
    pub format: Format,
    pub text: String,
    pub pair: Option<String>,
    pub image: Option<String>,
    pub label: String,
    pub problem_type: Option<ProblemType>,
    pub new_head: bool,
    pub max_length: usize,
}

impl DataSettings for ClassifierData {
    fn check(&self) -> Result<()> {
        let length = self.max_length;
        ensure!(length > 2, "'data.max_length' is {length}, expected 3 or more");
        ensure!(
            self.problem_type != Some(ProblemType::MultiLabelClassification),
            "'data.problem_type' is multi_label_classification, which is not implemented: each row has one label"
        );
        ensure!(
            self.image.is_none() || self.pair.is_none(),
            "'data.image' and 'data.pair' are both set: rows are pictures or texts, not both"
        );
        ensure!(
            self.format != Format::Text,
            "'data.format' is text, and a classifier learns from rows with labels"
        );
        Ok(())
    }
}
