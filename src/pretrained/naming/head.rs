//! The head of a model, by the class in `architectures`.

use serde_json::{json, Value};

/// The layers on top of a base model.
///
/// ```no_run
/// use ln_tuning::pretrained::{Head, ModelFiles};
/// let files = ModelFiles::open("bert-base-uncased")?;
/// assert_eq!(files.head(), Head::MaskedLm);
/// let files = files.with_head(Head::SequenceClassification)?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Head {
    /// No head: `BertModel`, `LlamaModel`.
    #[doc(alias = "AutoModel")]
    None,
    /// Logits of the next token: `LlamaForCausalLM`, `GPT2LMHeadModel`, `T5ForConditionalGeneration`.
    #[doc(alias = "AutoModelForCausalLM")]
    #[doc(alias = "AutoModelForSeq2SeqLM")]
    LanguageModel,
    /// Logits of masked tokens: `BertForMaskedLM`.
    #[doc(alias = "AutoModelForMaskedLM")]
    MaskedLm,
    /// Logits of labels for a text: `BertForSequenceClassification`.
    #[doc(alias = "AutoModelForSequenceClassification")]
    SequenceClassification,
    /// Logits of labels for each token: `BertForTokenClassification`.
    #[doc(alias = "AutoModelForTokenClassification")]
    TokenClassification,
    /// Logits of an answer's start and end: `BertForQuestionAnswering`.
    #[doc(alias = "AutoModelForQuestionAnswering")]
    QuestionAnswering,
    /// Logits of labels for an image: `ViTForImageClassification`.
    #[doc(alias = "AutoModelForImageClassification")]
    ImageClassification,
    /// Any other head, or several: `BertForPreTraining`.
    Other,
}

/// Endings of class names; the first match decides.
const ENDINGS: &[(&str, Head)] = &[
    ("ForCausalLM", Head::LanguageModel),
    ("ForConditionalGeneration", Head::LanguageModel),
    ("LMHeadModel", Head::LanguageModel),
    ("ForMaskedLM", Head::MaskedLm),
    ("ForSequenceClassification", Head::SequenceClassification),
    ("ForTokenClassification", Head::TokenClassification),
    ("ForQuestionAnswering", Head::QuestionAnswering),
    ("ForImageClassification", Head::ImageClassification),
    ("HeadsModel", Head::Other),
    ("Model", Head::None),
    ("Backbone", Head::None),
];

impl Head {
    /// The head of a class of transformers.
    pub(crate) fn of_class(class: &str) -> Self {
        let found = ENDINGS.iter().find(|(ending, _)| class.ends_with(ending));
        found.map_or(Head::Other, |(_, head)| *head)
    }

    /// The usual ending of the classes with this head.
    pub(crate) fn ending(self) -> &'static str {
        let found = ENDINGS.iter().find(|(_, head)| *head == self);
        found.map_or("", |(ending, _)| *ending)
    }

    /// True if its outputs are labels: sequence, token and image classification.
    pub fn has_labels(self) -> bool {
        use Head::{ImageClassification, SequenceClassification, TokenClassification};
        matches!(self, SequenceClassification | TokenClassification | ImageClassification)
    }
}

/// A `config.json` whose class has this head.
pub(crate) fn with_class_of(config: &Value, head: Head) -> Value {
    let mut config = config.clone();
    let class = config.get("architectures").and_then(|classes| classes.get(0)?.as_str());
    if class.is_some_and(|class| Head::of_class(class) == head) {
        return config;
    }
    let stem = class.map_or("", |class| match class.find("For").or(class.find("LMHead")) {
        Some(end) => &class[..end],
        None => {
            ["Model", "Backbone"].iter().find_map(|end| class.strip_suffix(end)).unwrap_or(class)
        }
    });
    let seq2seq = config.get("is_encoder_decoder").and_then(Value::as_bool) == Some(true);
    let conditional = seq2seq || config.get("text_config").is_some_and(Value::is_object);
    let ending = match head {
        Head::LanguageModel if conditional => "ForConditionalGeneration",
        head => head.ending(),
    };
    config["architectures"] = json!([format!("{stem}{ending}")]);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_tells_the_head() {
        for (class, head) in [
            ("GPT2Model", Head::None),
            ("GPT2LMHeadModel", Head::LanguageModel),
            ("GPT2DoubleHeadsModel", Head::Other),
            ("T5ForConditionalGeneration", Head::LanguageModel),
            ("BertForPreTraining", Head::Other),
            ("XLMRobertaForTokenClassification", Head::TokenClassification),
        ] {
            assert_eq!(Head::of_class(class), head, "{class}");
        }
    }
}
