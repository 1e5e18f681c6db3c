//! The task of a model, as PEFT names it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The task of a model: PEFT's `TaskType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskType {
    /// `SEQ_CLS`: sequence classification.
    SeqCls,
    /// `SEQ_2_SEQ_LM`: sequence-to-sequence language model.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// `CAUSAL_LM`: causal language model.
    CausalLm,
    /// `TOKEN_CLS`: token classification.
    TokenCls,
    /// `QUESTION_ANS`: question answering.
    QuestionAns,
    /// `FEATURE_EXTRACTION`: hidden states as features.
    FeatureExtraction,
}

/// The names in files.
pub(super) const TASK_TYPES: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

impl fmt::Display for TaskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TASK_TYPES[*self as usize])
    }
}
