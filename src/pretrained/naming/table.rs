//! The naming of each model type, one row each.

use super::head::Head;
use super::row::{Row, Tied, Top};

const fn top(head: Head, base: &'static str, modules: &'static [&'static str]) -> Top {
    Top { head, base, modules }
}

const LANGUAGE: Head = Head::LanguageModel;
const MASKED: Head = Head::MaskedLm;
const SEQUENCE: Head = Head::SequenceClassification;
const TOKEN: Head = Head::TokenClassification;
const ANSWER: Head = Head::QuestionAnswering;
const IMAGE: Head = Head::ImageClassification;

/// Causal masks and rotary frequencies.
const OF_ATTENTION: &[&str] = &[
    ".attn.bias",
    ".attn.masked_bias",
    ".attn.causal_mask",
    ".attention.bias",
    ".attention.masked_bias",
    ".crossattention.bias",
    "rotary_emb.inv_freq",
];

/// Those of a language model and of a tower for images.
const OF_PARTS: &[&str] = &["rotary_emb.inv_freq", "embeddings.position_ids"];

const LLAMA: Row = Row {
    model_types: "llama ministral nemotron exaone4 qwen2 qwen3 qwen3_moe",
    heads: &[
        top(LANGUAGE, "model", &["lm_head"]),
        top(TOKEN, "model", &["score.weight", "score.bias"]),
        top(SEQUENCE, "model", &["score.weight"]),
        top(ANSWER, "transformer", &["qa_outputs"]),
    ],
    other_heads: &[],
    kept_by: &[],
    computed: OF_ATTENTION,
    ties: &[("lm_head.weight", "embed_tokens.weight")],
    tied: Tied::Default(false),
    seq2seq: false,
};

const MISTRAL: Row = Row {
    model_types:
        "mistral mixtral qwen2_moe granite granitemoe olmo olmo2 olmo3 phi phi3 stablelm glm glm4",
    heads: &[
        top(LANGUAGE, "model", &["lm_head"]),
        top(TOKEN, "model", &["score.weight", "score.bias"]),
        top(SEQUENCE, "model", &["score.weight"]),
        top(ANSWER, "model", &["qa_outputs"]),
    ],
    ..LLAMA
};

const GPT2: Row = Row {
    model_types: "gpt2 gpt_neo gpt_bigcode mpt",
    heads: &[
        top(LANGUAGE, "transformer", &["lm_head"]),
        top(SEQUENCE, "transformer", &["score"]),
        top(TOKEN, "transformer", &["classifier"]),
        top(ANSWER, "transformer", &["qa_outputs"]),
    ],
    ties: &[("lm_head.weight", "wte.weight")],
    tied: Tied::Default(true),
    ..LLAMA
};

const BART: Row = Row {
    model_types: "bart mbart",
    heads: &[
        top(LANGUAGE, "model", &["lm_head", "final_logits_bias"]),
        top(SEQUENCE, "model", &["classification_head"]),
        top(ANSWER, "model", &["qa_outputs"]),
    ],
    computed: &["encoder.version", "decoder.version"],
    ties: &[
        ("lm_head.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
    ],
    tied: Tied::Default(true),
    seq2seq: true,
    ..LLAMA
};

const T5: Row = Row {
    model_types: "t5 mt5 umt5",
    heads: &[
        top(LANGUAGE, "", &["lm_head"]),
        top(SEQUENCE, "transformer", &["classification_head"]),
        top(TOKEN, "transformer", &["classifier"]),
        top(ANSWER, "", &["qa_outputs"]),
    ],
    kept_by: &[("decoder", &[Head::None, LANGUAGE, SEQUENCE, ANSWER])],
    computed: &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
    ties: &[
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
        ("lm_head.weight", "shared.weight"),
    ],
    tied: Tied::Always,
    ..BART
};

const WORDS: &str = "embeddings.word_embeddings.weight";

const BERT: Row = Row {
    model_types: "bert",
    heads: &[
        top(MASKED, "bert", &["cls.predictions"]),
        top(SEQUENCE, "bert", &["classifier"]),
        top(TOKEN, "bert", &["classifier"]),
        top(ANSWER, "bert", &["qa_outputs"]),
    ],
    other_heads: &["cls"],
    kept_by: &[("pooler", &[Head::None, SEQUENCE])],
    computed: &["embeddings.position_ids", "embeddings.token_type_ids"],
    ties: &[
        ("cls.predictions.decoder.weight", WORDS),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
    tied: Tied::Default(true),
    ..LLAMA
};

const ROBERTA: Row = Row {
    model_types: "roberta xlm-roberta camembert",
    heads: &[
        top(MASKED, "roberta", &["lm_head"]),
        top(SEQUENCE, "roberta", &["classifier.dense", "classifier.out_proj"]),
        top(TOKEN, "roberta", &["classifier.weight", "classifier.bias"]),
        top(ANSWER, "roberta", &["qa_outputs"]),
    ],
    other_heads: &["classifier"],
    kept_by: &[("pooler", &[Head::None])],
    ties: &[("lm_head.decoder.weight", WORDS), ("lm_head.decoder.bias", "lm_head.bias")],
    ..BERT
};

const ELECTRA: Row = Row {
    model_types: "electra",
    heads: &[
        top(MASKED, "electra", &["generator_predictions", "generator_lm_head"]),
        top(SEQUENCE, "electra", &["classifier.dense", "classifier.out_proj"]),
        top(TOKEN, "electra", &["classifier.weight", "classifier.bias"]),
        top(ANSWER, "electra", &["qa_outputs"]),
    ],
    other_heads: &["discriminator_predictions", "classifier"],
    kept_by: &[],
    ties: &[("generator_lm_head.weight", WORDS)],
    ..BERT
};

const ALBERT: Row = Row {
    model_types: "albert",
    heads: &[
        top(MASKED, "albert", &["predictions"]),
        top(SEQUENCE, "albert", &["classifier"]),
        top(TOKEN, "albert", &["classifier"]),
        top(ANSWER, "albert", &["qa_outputs"]),
    ],
    other_heads: &["sop_classifier"],
    ties: &[
        ("predictions.decoder.weight", WORDS),
        ("predictions.decoder.bias", "predictions.bias"),
    ],
    ..BERT
};

const DEBERTA: Row = Row {
    model_types: "deberta deberta-v2",
    heads: &[
        // One or the other.
        top(MASKED, "deberta", &["cls.predictions", "lm_predictions"]),
        top(SEQUENCE, "deberta", &["pooler", "classifier"]),
        top(TOKEN, "deberta", &["classifier"]),
        top(ANSWER, "deberta", &["qa_outputs"]),
    ],
    other_heads: &["cls", "mask_predictions"],
    kept_by: &[],
    ..BERT
};

const VIT: Row = Row {
    model_types: "vit",
    heads: &[top(IMAGE, "vit", &["classifier"])],
    kept_by: &[("pooler", &[Head::None]), ("embeddings.mask_token", &[])],
    computed: &[],
    ties: &[],
    tied: Tied::Default(false),
    ..LLAMA
};

/// Both towers, and with CLIP the projections, are at the top level. A classifier has the tower for images alone.
const CLIP: Row = Row {
    model_types: "clip",
    heads: &[top(IMAGE, "", &["classifier"])],
    kept_by: &[
        ("text_model", &[Head::None]),
        ("text_projection", &[Head::None]),
        ("visual_projection", &[Head::None]),
        ("logit_scale", &[Head::None]),
    ],
    computed: &["embeddings.position_ids"],
    ..VIT
};

/// A language model below a larger one.
const LLAVA: Row = Row {
    model_types: "llava",
    heads: &[top(LANGUAGE, "model", &["lm_head"])],
    computed: OF_PARTS,
    ties: &[("lm_head.weight", "language_model.embed_tokens.weight")],
    tied: Tied::ByEither,
    ..LLAMA
};

const IDEFICS3: Row = Row {
    model_types: "idefics3 smolvlm",
    ties: &[("lm_head.weight", "text_model.embed_tokens.weight")],
    tied: Tied::Own(false),
    ..LLAVA
};

pub(super) static ROWS: [Row; 31] = [
    LLAMA,
    MISTRAL,
    Row {
        model_types: "gemma gemma2 gemma3_text cohere cohere2 starcoder2",
        tied: Tied::Default(true),
        ..MISTRAL
    },
    Row { model_types: "smollm3", tied: Tied::Default(true), ..LLAMA },
    Row {
        model_types: "opt",
        ties: &[("lm_head.weight", "decoder.embed_tokens.weight")],
        tied: Tied::Default(true),
        ..MISTRAL
    },
    GPT2,
    Row { model_types: "gptj codegen", tied: Tied::Default(false), ..GPT2 },
    Row {
        model_types: "bloom falcon",
        ties: &[("lm_head.weight", "word_embeddings.weight")],
        ..GPT2
    },
    Row {
        model_types: "gpt_neox",
        heads: &[
            top(LANGUAGE, "gpt_neox", &["lm_head"]),
            top(SEQUENCE, "gpt_neox", &["score"]),
            top(TOKEN, "gpt_neox", &["classifier"]),
            top(ANSWER, "gpt_neox", &["qa_outputs"]),
        ],
        ties: &[("lm_head.weight", "embed_in.weight")],
        ..LLAMA
    },
    BART,
    T5,
    BERT,
    ROBERTA,
    ELECTRA,
    ALBERT,
    DEBERTA,
    Row {
        model_types: "mpnet",
        heads: &[
            top(MASKED, "mpnet", &["lm_head"]),
            top(SEQUENCE, "mpnet", &["classifier.dense", "classifier.out_proj"]),
            top(TOKEN, "mpnet", &["classifier.weight", "classifier.bias"]),
            top(ANSWER, "mpnet", &["qa_outputs"]),
        ],
        ..ROBERTA
    },
    Row {
        model_types: "modernbert",
        heads: &[
            top(MASKED, "model", &["head", "decoder"]),
            top(SEQUENCE, "model", &["head", "classifier"]),
            top(TOKEN, "model", &["head", "classifier"]),
            top(ANSWER, "model", &["head", "classifier"]),
        ],
        other_heads: &[],
        kept_by: &[],
        ties: &[("decoder.weight", "embeddings.tok_embeddings.weight")],
        ..BERT
    },
    Row {
        model_types: "distilbert",
        heads: &[
            top(MASKED, "distilbert", &["vocab_transform", "vocab_layer_norm", "vocab_projector"]),
            top(SEQUENCE, "distilbert", &["pre_classifier", "classifier"]),
            top(TOKEN, "distilbert", &["classifier"]),
            top(ANSWER, "distilbert", &["qa_outputs"]),
        ],
        other_heads: &[],
        kept_by: &[],
        ties: &[("vocab_projector.weight", WORDS)],
        ..BERT
    },
    VIT,
    Row {
        model_types: "dinov2",
        heads: &[top(IMAGE, "dinov2", &["classifier"])],
        kept_by: &[],
        ..VIT
    },
    CLIP,
    Row {
        model_types: "siglip",
        kept_by: &[
            ("text_model", &[Head::None]),
            ("logit_scale", &[Head::None]),
            ("logit_bias", &[Head::None]),
        ],
        ..CLIP
    },
    // A tower with a projection is below a prefix, and so are the towers in files of former versions.
    Row {
        model_types: "clip_text_model siglip_text_model",
        heads: &[top(Head::Other, "text_model", &["text_projection"])],
        kept_by: &[],
        ..CLIP
    },
    Row {
        model_types: "clip_vision_model siglip_vision_model",
        heads: &[top(Head::Other, "vision_model", &["visual_projection"])],
        kept_by: &[],
        ..CLIP
    },
    LLAVA,
    Row { model_types: "llava_next", tied: Tied::Own(false), ..LLAVA },
    Row { model_types: "gemma3", tied: Tied::Own(true), ..LLAVA },
    IDEFICS3,
    Row { model_types: "qwen2_5_vl", ..LLAVA },
    Row { model_types: "qwen3_vl", tied: Tied::Own(false), ..LLAVA },
];

impl Row {
    pub(super) fn of(model_type: &str) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.model_types.split(' ').any(|known| known == model_type))
    }
}
