//! The head on top of a base model.

/// What stands on top of a base model, as the class in `architectures` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Head {
    /// Nothing: `BertModel`, `LlamaModel`.
    None,
    /// The next token: `LlamaForCausalLM`, `GPT2LMHeadModel`, `T5ForConditionalGeneration`.
    LanguageModel,
    /// The token at each place: `BertForMaskedLM`.
    MaskedLm,
    /// Labels for the whole sequence: `BertForSequenceClassification`.
    SequenceClassification,
    /// Labels for each token: `BertForTokenClassification`.
    TokenClassification,
    /// Labels for an image: `ViTForImageClassification`.
    ImageClassification,
}

impl Head {
    /// The head of a class of transformers; `None` for one that is not known here.
    pub fn of_class(class: &str) -> Option<Self> {
        let endings = [
            ("ForCausalLM", Head::LanguageModel),
            ("LMHeadModel", Head::LanguageModel),
            ("ForConditionalGeneration", Head::LanguageModel),
            ("ForMaskedLM", Head::MaskedLm),
            ("ForSequenceClassification", Head::SequenceClassification),
            ("ForTokenClassification", Head::TokenClassification),
            ("ForImageClassification", Head::ImageClassification),
            ("Model", Head::None),
        ];
        endings.iter().find(|(ending, _)| class.ends_with(ending)).map(|(_, head)| *head)
    }

    /// How the classes end that have it.
    pub fn ending(self) -> &'static str {
        match self {
            Head::None => "Model",
            Head::LanguageModel => "ForCausalLM",
            Head::MaskedLm => "ForMaskedLM",
            Head::SequenceClassification => "ForSequenceClassification",
            Head::TokenClassification => "ForTokenClassification",
            Head::ImageClassification => "ForImageClassification",
        }
    }

    /// Whether it has labels.
    pub fn has_labels(self) -> bool {
        matches!(
            self,
            Head::SequenceClassification | Head::TokenClassification | Head::ImageClassification
        )
    }
}
