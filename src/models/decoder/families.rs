//! The families of decoders, a row each.

use super::family::{Factor, Family, Keys, Ropes, Rotary, Switch, Windows};
use super::form::{Names, Positions, QkvForm};
use super::variants;
use crate::models::nn::{Flow, NormKind, QkNorm};

const NO: Switch = Switch::Is(false);
const YES: Switch = Switch::Is(true);
const ATTENTION_BIAS: Switch = Switch::Key("attention_bias", false);
const USE_BIAS: Switch = Switch::Key("use_bias", true);

const LLAMA: Family = Family {
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
const GEMMA: Family = Family {
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
const GEMMA2: Family = Family {
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
const QWEN2: Family = Family {
    model_type: "qwen2",
    keys: Keys { max_positions: 32_768, window: Some(4096), ..LLAMA.keys },
    qkv_bias: YES,
    o_bias: NO,
    mlp_bias: NO,
    windows: Windows::From,
    ..LLAMA
};
const NEOX: Family = Family {
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
const BLOOM: Family = Family {
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
const GPT2: Family = Family {
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

pub(super) const FAMILIES: &[Family] = &[
    BLOOM,
    Family {
        model_type: "cohere",
        names: Names { norms: ["input_layernorm", "", "", ""], ..LLAMA.names },
        keys: Keys {
            eps: ("layer_norm_eps", 1e-5),
            theta: ("rope_theta", 500_000.),
            max_positions: 8192,
            ..LLAMA.keys
        },
        norm: NormKind::LayerWithoutBias,
        positions: Positions::Rope { side_by_side: true },
        flow: Flow::Parallel,
        mlp_bias: NO,
        tied: true,
        logit_scale: Factor::Key("logit_scale", 0.0625),
        variant: variants::cohere,
        ..LLAMA
    },
    Family {
        model_type: "falcon",
        keys: Keys {
            intermediate: "ffn_hidden_size",
            activation: (&["activation"], "gelu"),
            residual_dropout: [("attention_dropout", 0.), ("hidden_dropout", 0.)],
            theta: LLAMA.keys.theta,
            ..BLOOM.keys
        },
        names: Names { embed_norm: "", ..BLOOM.names },
        positions: Positions::Rope { side_by_side: false },
        qkv_bias: Switch::Key("bias", false),
        o_bias: Switch::Key("bias", false),
        mlp_bias: Switch::Key("bias", false),
        rotary: LLAMA.rotary,
        variant: variants::falcon,
        ..BLOOM
    },
    GEMMA,
    GEMMA2,
    Family {
        model_type: "gemma3_text",
        keys: Keys {
            theta: ("rope_theta", 1_000_000.),
            max_positions: 131_072,
            caps: [("attn_logit_softcapping", None), ("final_logit_softcapping", None)],
            ..GEMMA2.keys
        },
        qk_norm: QkNorm::Heads,
        ropes: Ropes::ByWindow,
        windows: Windows::Pattern,
        ..GEMMA2
    },
    GPT2,
    NEOX,
    Family {
        model_type: "gptj",
        names: Names {
            positions: "",
            qkv: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
            o: "attn.out_proj",
            inner: &["mlp.fc_in"],
            outer: "mlp.fc_out",
            norms: ["ln_1", "", "", ""],
            ..GPT2.names
        },
        keys: Keys {
            theta: ("", 10_000.),
            embedding_dropout: ("embd_pdrop", 0.),
            attention_dropout: ("attn_pdrop", 0.),
            residual_dropout: [("resid_pdrop", 0.); 2],
            ..GPT2.keys
        },
        positions: Positions::Rope { side_by_side: true },
        flow: Flow::Parallel,
        qkv: QkvForm::Apart,
        transposed: false,
        qkv_bias: NO,
        o_bias: NO,
        head_bias: true,
        tied: false,
        rotary: Rotary::Dims("rotary_dim"),
        variant: variants::as_it_is,
        ..GPT2
    },
    Family {
        model_type: "granite",
        embedding_scale: Factor::Key("embedding_multiplier", 1.),
        residual_scale: Factor::Key("residual_multiplier", 1.),
        logit_scale: Factor::OverKey("logits_scaling", 1.),
        attention_scale: Factor::Key("attention_multiplier", 1.),
        ..LLAMA
    },
    LLAMA,
    Family {
        model_type: "mistral",
        keys: Keys { max_positions: 131_072, window: Some(4096), ..LLAMA.keys },
        qkv_bias: NO,
        o_bias: NO,
        mlp_bias: NO,
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        model_type: "olmo",
        keys: Keys { eps: ("", 1e-5), clip_qkv: "clip_qkv", ..LLAMA.keys },
        norm: NormKind::LayerWithoutWeights,
        mlp_bias: NO,
        ..LLAMA
    },
    Family {
        model_type: "olmo2",
        names: Names {
            norms: ["", "post_attention_layernorm", "", "post_feedforward_layernorm"],
            ..LLAMA.names
        },
        keys: Keys { eps: ("rms_norm_eps", 1e-5), ..LLAMA.keys },
        qk_norm: QkNorm::Whole,
        mlp_bias: NO,
        ..LLAMA
    },
    Family {
        model_type: "opt",
        names: Names {
            base: "model",
            embed: "decoder.embed_tokens",
            positions: "decoder.embed_positions",
            layers: "decoder.layers",
            norm: "decoder.final_layer_norm",
            o: "self_attn.out_proj",
            inner: &["fc1"],
            outer: "fc2",
            norms: ["self_attn_layer_norm", "", "final_layer_norm", ""],
            ..LLAMA.names
        },
        keys: Keys {
            kv_heads: "",
            intermediate: "ffn_dim",
            activation: (&["activation_function"], "relu"),
            eps: ("", 1e-5),
            residual_dropout: [("dropout", 0.1); 2],
            ..LLAMA.keys
        },
        norm: NormKind::Layer,
        positions: Positions::Learned { offset: 2, by_tokens: true },
        gated: false,
        qkv_bias: Switch::Key("enable_bias", true),
        o_bias: Switch::Key("enable_bias", true),
        mlp_bias: Switch::Key("enable_bias", true),
        tied: true,
        variant: variants::opt,
        ..LLAMA
    },
    Family {
        model_type: "phi",
        names: Names {
            norm: "final_layernorm",
            o: "self_attn.dense",
            inner: &["mlp.fc1"],
            outer: "mlp.fc2",
            norms: ["input_layernorm", "", "", ""],
            qk_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
            ..LLAMA.names
        },
        keys: Keys {
            activation: (&["hidden_act"], "gelu_new"),
            eps: ("layer_norm_eps", 1e-5),
            embedding_dropout: ("embd_pdrop", 0.),
            residual_dropout: [("resid_pdrop", 0.); 2],
            ..LLAMA.keys
        },
        norm: NormKind::Layer,
        flow: Flow::Parallel,
        gated: false,
        qkv_bias: YES,
        o_bias: YES,
        mlp_bias: YES,
        head_bias: true,
        rotary: Rotary::Part("partial_rotary_factor", 0.5),
        variant: variants::phi,
        ..LLAMA
    },
    Family {
        model_type: "phi3",
        names: Names { qkv: &["self_attn.qkv_proj"], inner: &["mlp.gate_up_proj"], ..LLAMA.names },
        keys: Keys {
            eps: ("rms_norm_eps", 1e-5),
            residual_dropout: [("resid_pdrop", 0.); 2],
            max_positions: 4096,
            ..LLAMA.keys
        },
        rotary: Rotary::Part("partial_rotary_factor", 1.),
        ropes: Ropes::Long,
        qkv: QkvForm::Parts,
        qkv_bias: NO,
        o_bias: NO,
        mlp_bias: NO,
        windows: Windows::All,
        ..LLAMA
    },
    QWEN2,
    Family {
        model_type: "qwen3",
        qk_norm: QkNorm::Heads,
        qkv_bias: ATTENTION_BIAS,
        o_bias: ATTENTION_BIAS,
        ..QWEN2
    },
    Family {
        model_type: "smollm3",
        keys: Keys { theta: ("rope_theta", 2_000_000.), max_positions: 32_768, ..LLAMA.keys },
        windows: Windows::WithoutRope,
        ropes: Ropes::Some,
        tied: true,
        ..LLAMA
    },
    Family {
        model_type: "stablelm",
        names: Names {
            qk_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
            ..LLAMA.names
        },
        keys: Keys {
            eps: ("layer_norm_eps", 1e-5),
            residual_dropout: [("", 0.), ("hidden_dropout", 0.)],
            max_positions: 4096,
            ..LLAMA.keys
        },
        norm: NormKind::Layer,
        qkv_bias: Switch::Key("use_qkv_bias", false),
        o_bias: NO,
        mlp_bias: NO,
        rotary: Rotary::Part("partial_rotary_factor", 0.25),
        variant: variants::stablelm,
        ..LLAMA
    },
    Family {
        model_type: "starcoder2",
        names: Names { inner: &["mlp.c_fc"], outer: "mlp.c_proj", ..LLAMA.names },
        keys: Keys {
            activation: (&["hidden_act"], "gelu_pytorch_tanh"),
            eps: ("norm_epsilon", 1e-5),
            embedding_dropout: ("embedding_dropout", 0.),
            residual_dropout: [("residual_dropout", 0.); 2],
            max_positions: 4096,
            ..LLAMA.keys
        },
        norm: NormKind::Layer,
        gated: false,
        qkv_bias: USE_BIAS,
        o_bias: USE_BIAS,
        mlp_bias: USE_BIAS,
        windows: Windows::All,
        tied: true,
        ..LLAMA
    },
];
