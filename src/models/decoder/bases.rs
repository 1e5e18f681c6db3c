//! The families that others are variations of.

use super::family::{Factor, Family, Keys, Ropes, Rotary, Switch, Windows};
use super::form::{Names, Positions, QkvForm};
use super::variants;
use crate::models::nn::{Flow, NormKind, QkNorm};

pub(super) const NO: Switch = Switch::Is(false);
pub(super) const YES: Switch = Switch::Is(true);
pub(super) const ATTENTION_BIAS: Switch = Switch::Key("attention_bias", false);
pub(super) const USE_BIAS: Switch = Switch::Key("use_bias", true);

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    names: Names {
        base: "model",
        embed: "embed_tokens",
        positions: "",
        embed_norm: "",
        layers: "layers",
        norm: "norm",
        qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        o: "self_attn.o_proj",
        inner: &["mlp.gate_proj", "mlp.up_proj"],
        outer: "mlp.down_proj",
        norms: ["input_layernorm", "", "post_attention_layernorm", ""],
        qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    },
    keys: Keys {
        kv_heads: "num_key_value_heads",
        intermediate: "intermediate_size",
        activation: (&["hidden_act"], "silu"),
        eps: ("rms_norm_eps", 1e-6),
        theta: ("rope_theta", 10_000.),
        max_positions: 2048,
        embedding_dropout: ("", 0.),
        attention_dropout: ("attention_dropout", 0.),
        residual_dropout: [("", 0.); 2],
        caps: [("", None); 2],
        window: None,
        clip_qkv: "",
    },
    norm: NormKind::Rms,
    positions: Positions::Rope { side_by_side: false },
    rotary: Rotary::All,
    ropes: Ropes::One,
    windows: Windows::None,
    flow: Flow::Sequential,
    qkv: QkvForm::Apart,
    qk_norm: QkNorm::None,
    gated: true,
    transposed: false,
    qkv_bias: ATTENTION_BIAS,
    o_bias: ATTENTION_BIAS,
    mlp_bias: Switch::Key("mlp_bias", false),
    head_bias: false,
    tied: false,
    embedding_scale: Factor::One,
    residual_scale: Factor::One,
    logit_scale: Factor::One,
    attention_scale: Factor::OverRootOfHead,
    variant: variants::as_it_is,
};
pub(super) const GEMMA: Family = Family {
    model_type: "gemma",
    keys: Keys {
        activation: (&["hidden_activation", "hidden_act"], "gelu_pytorch_tanh"),
        max_positions: 8192,
        ..LLAMA.keys
    },
    norm: NormKind::RmsFromOne,
    mlp_bias: NO,
    tied: true,
    embedding_scale: Factor::RootOfWidth,
    variant: variants::gemma,
    ..LLAMA
};
pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    names: Names {
        norms: [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ],
        ..LLAMA.names
    },
    keys: Keys {
        caps: [("attn_logit_softcapping", Some(50.)), ("final_logit_softcapping", Some(30.))],
        window: Some(4096),
        ..GEMMA.keys
    },
    windows: Windows::Alternating,
    attention_scale: Factor::OverRootOf("query_pre_attn_scalar", 256.),
    ..GEMMA
};
pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    keys: Keys { max_positions: 32_768, window: Some(4096), ..LLAMA.keys },
    qkv_bias: YES,
    o_bias: NO,
    mlp_bias: NO,
    windows: Windows::From,
    ..LLAMA
};
pub(super) const NEOX: Family = Family {
    model_type: "gpt_neox",
    names: Names {
        base: "gpt_neox",
        embed: "embed_in",
        layers: "layers",
        norm: "final_layer_norm",
        qkv: &["attention.query_key_value"],
        o: "attention.dense",
        inner: &["mlp.dense_h_to_4h"],
        outer: "mlp.dense_4h_to_h",
        ..LLAMA.names
    },
    keys: Keys {
        kv_heads: "",
        activation: (&["hidden_act"], "gelu"),
        eps: ("layer_norm_eps", 1e-5),
        theta: ("rotary_emb_base", 10_000.),
        embedding_dropout: ("hidden_dropout", 0.),
        residual_dropout: [("hidden_dropout", 0.); 2],
        ..LLAMA.keys
    },
    norm: NormKind::Layer,
    rotary: Rotary::Part("rotary_pct", 0.25),
    flow: Flow::Parallel,
    qkv: QkvForm::Groups,
    gated: false,
    qkv_bias: Switch::Key("attention_bias", true),
    o_bias: Switch::Key("attention_bias", true),
    mlp_bias: YES,
    variant: variants::gpt_neox,
    ..LLAMA
};
pub(super) const BLOOM: Family = Family {
    model_type: "bloom",
    names: Names {
        base: "transformer",
        embed: "word_embeddings",
        embed_norm: "word_embeddings_layernorm",
        layers: "h",
        norm: "ln_f",
        qkv: &["self_attention.query_key_value"],
        o: "self_attention.dense",
        ..NEOX.names
    },
    keys: Keys {
        intermediate: "",
        activation: (&[], "gelu_pytorch_tanh"),
        eps: ("layer_norm_epsilon", 1e-5),
        embedding_dropout: ("", 0.),
        ..NEOX.keys
    },
    positions: Positions::Alibi { falcon: false },
    flow: Flow::Sequential,
    qkv_bias: YES,
    o_bias: YES,
    tied: true,
    variant: variants::bloom,
    ..NEOX
};
pub(super) const GPT2: Family = Family {
    model_type: "gpt2",
    names: Names {
        base: "transformer",
        embed: "wte",
        positions: "wpe",
        layers: "h",
        norm: "ln_f",
        qkv: &["attn.c_attn"],
        o: "attn.c_proj",
        inner: &["mlp.c_fc"],
        outer: "mlp.c_proj",
        norms: ["ln_1", "", "ln_2", ""],
        ..LLAMA.names
    },
    keys: Keys {
        kv_heads: "",
        intermediate: "n_inner",
        activation: (&["activation_function"], "gelu_new"),
        eps: ("layer_norm_epsilon", 1e-5),
        embedding_dropout: ("embd_pdrop", 0.1),
        attention_dropout: ("attn_pdrop", 0.1),
        residual_dropout: [("resid_pdrop", 0.1); 2],
        ..LLAMA.keys
    },
    norm: NormKind::Layer,
    positions: Positions::Learned { offset: 0, by_tokens: false },
    qkv: QkvForm::Parts,
    gated: false,
    transposed: true,
    qkv_bias: YES,
    o_bias: YES,
    mlp_bias: YES,
    tied: true,
    variant: variants::gpt2,
    ..LLAMA
};
