//! The families of text encoders as data: what their variables and the keys of their `config.json` are called, and in
//! what little they compute differently.

use crate::models::nn::Activation;

/// One `model_type`.
#[derive(Debug, PartialEq)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    /// The start of class names: `Bert` of `BertForMaskedLM`.
    pub(super) class: &'static str,
    /// The path of the base model in a model with a head.
    pub(super) prefix: &'static str,
    pub(super) keys: &'static Keys,
    pub(super) names: &'static Names,
    pub(super) masked_lm: &'static MaskedLmNames,
    pub(super) classifier: &'static Classifier,
    /// The base model ends in a pooler.
    pub(super) pooler: bool,
    pub(super) token_types: bool,
    /// Positions count from behind the padding id, and padding is not counted.
    pub(super) positions_from_padding: bool,
    pub(super) padding_id: i64,
    /// Attention's output is dropped out in front of its norm.
    pub(super) attention_output_dropout: bool,
}

/// Keys of `config.json`.
#[derive(Debug, PartialEq)]
pub(super) struct Keys {
    pub(super) hidden_size: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) intermediate_size: &'static str,
    pub(super) activation: &'static str,
    pub(super) dropout: &'static str,
    pub(super) attention_dropout: &'static str,
    /// With its default; none: that of `dropout`.
    pub(super) sequence_dropout: (&'static str, Option<f64>),
    /// None: always `dropout`.
    pub(super) token_dropout: Option<&'static str>,
    /// None: always 1e-12.
    pub(super) norm_eps: Option<&'static str>,
}

/// Modules of the base model; those of a layer stand below `{layers}.{number}`.
#[derive(Debug, PartialEq)]
pub(super) struct Names {
    pub(super) layers: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) inner: &'static str,
    pub(super) outer: &'static str,
    pub(super) output_norm: &'static str,
}

/// The masked LM head: dense, activation, norm, decoder.
#[derive(Debug, PartialEq)]
pub(super) struct MaskedLmNames {
    pub(super) dense: &'static str,
    pub(super) norm: &'static str,
    pub(super) decoder: &'static str,
    /// The name of the decoder's bias when it is tied.
    pub(super) bias: &'static str,
    /// Of the head; none: that of the blocks.
    pub(super) activation: Option<Activation>,
}

/// The sequence classification head, on the first token: dense, activation, dropout, output.
#[derive(Debug, PartialEq)]
pub(super) struct Classifier {
    pub(super) dense: &'static str,
    pub(super) activation: Activation,
    pub(super) output: &'static str,
    /// Dropout in front of the dense layer too.
    pub(super) dropout_first: bool,
}

pub(super) const POOLER: &str = "pooler.dense";

const BERT_KEYS: Keys = Keys {
    hidden_size: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate_size: "intermediate_size",
    activation: "hidden_act",
    dropout: "hidden_dropout_prob",
    attention_dropout: "attention_probs_dropout_prob",
    sequence_dropout: ("classifier_dropout", None),
    token_dropout: Some("classifier_dropout"),
    norm_eps: Some("layer_norm_eps"),
};

const BERT_NAMES: Names = Names {
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    output_norm: "output.LayerNorm",
};

const BERT: Family = Family {
    model_type: "bert",
    class: "Bert",
    prefix: "bert",
    keys: &BERT_KEYS,
    names: &BERT_NAMES,
    masked_lm: &MaskedLmNames {
        dense: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.LayerNorm",
        decoder: "cls.predictions.decoder",
        bias: "cls.predictions.bias",
        activation: None,
    },
    // The pooler is its dense layer.
    classifier: &Classifier {
        dense: "bert.pooler.dense",
        activation: Activation::Tanh,
        output: "classifier",
        dropout_first: false,
    },
    pooler: true,
    token_types: true,
    positions_from_padding: false,
    padding_id: 0,
    attention_output_dropout: true,
};

const ROBERTA: Family = Family {
    model_type: "roberta",
    class: "Roberta",
    prefix: "roberta",
    masked_lm: &MaskedLmNames {
        dense: "lm_head.dense",
        norm: "lm_head.layer_norm",
        decoder: "lm_head.decoder",
        bias: "lm_head.bias",
        activation: Some(Activation::Gelu),
    },
    classifier: &Classifier {
        dense: "classifier.dense",
        activation: Activation::Tanh,
        output: "classifier.out_proj",
        dropout_first: true,
    },
    positions_from_padding: true,
    padding_id: 1,
    ..BERT
};

const XLM_ROBERTA: Family = Family { model_type: "xlm-roberta", class: "XLMRoberta", ..ROBERTA };

const DISTILBERT: Family = Family {
    model_type: "distilbert",
    class: "DistilBert",
    prefix: "distilbert",
    keys: &Keys {
        hidden_size: "dim",
        layers: "n_layers",
        heads: "n_heads",
        intermediate_size: "hidden_dim",
        activation: "activation",
        dropout: "dropout",
        attention_dropout: "attention_dropout",
        sequence_dropout: ("seq_classif_dropout", Some(0.2)),
        token_dropout: None,
        norm_eps: None,
    },
    names: &Names {
        layers: "transformer.layer",
        query: "attention.q_lin",
        key: "attention.k_lin",
        value: "attention.v_lin",
        attention_output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        inner: "ffn.lin1",
        outer: "ffn.lin2",
        output_norm: "output_layer_norm",
    },
    masked_lm: &MaskedLmNames {
        dense: "vocab_transform",
        norm: "vocab_layer_norm",
        decoder: "vocab_projector",
        bias: "vocab_projector.bias",
        activation: None,
    },
    classifier: &Classifier {
        dense: "pre_classifier",
        activation: Activation::Relu,
        output: "classifier",
        dropout_first: false,
    },
    pooler: false,
    token_types: false,
    attention_output_dropout: false,
    ..BERT
};

pub(super) static FAMILIES: [Family; 4] = [BERT, DISTILBERT, ROBERTA, XLM_ROBERTA];
