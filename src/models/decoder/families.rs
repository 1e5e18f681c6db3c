//! The families of decoders, a row each.

use super::family::{Family, Flow, Keys, Names, NormKind, Positions, QkNorm, Qkv, Switch};

const NO: Switch = Switch::Is(false);
const YES: Switch = Switch::Is(true);
const ATTENTION_BIAS: Switch = Switch::Key("attention_bias", false);
const USE_BIAS: Switch = Switch::Key("use_bias", true);
const SLIDING: Switch = Switch::Key("use_sliding_window", false);

const LLAMA: Family = Family {
    model_type: "llama",
    names: Names {
        embed: "model.embed_tokens",
        positions: "",
        embed_norm: "",
        layers: "model.layers",
        norm: "model.norm",
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
        activation: ("hidden_act", "silu"),
        eps: ("rms_norm_eps", 1e-6),
        theta: ("rope_theta", 10_000.),
        rotary: ("partial_rotary_factor", 1.),
        embedding_dropout: ("", 0.),
        attention_dropout: ("attention_dropout", 0.),
        residual_dropout: [("", 0.); 2],
    },
    norm: NormKind::Rms,
    positions: Positions::Rope { side_by_side: false },
    flow: Flow::Sequential,
    qkv: Qkv::Apart,
    qk_norm: QkNorm::None,
    gated: true,
    transposed: false,
    qkv_bias: ATTENTION_BIAS,
    o_bias: ATTENTION_BIAS,
    mlp_bias: Switch::Key("mlp_bias", false),
    head_bias: false,
    window: NO,
    tied: false,
};
const GEMMA: Family = Family {
    model_type: "gemma",
    keys: Keys { activation: ("hidden_act", "gelu_pytorch_tanh"), ..LLAMA.keys },
    norm: NormKind::RmsFromOne,
    mlp_bias: NO,
    tied: true,
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
    keys: Keys { activation: ("hidden_activation", "gelu_pytorch_tanh"), ..LLAMA.keys },
    window: YES,
    ..GEMMA
};
const QWEN2: Family = Family {
    model_type: "qwen2",
    qkv_bias: YES,
    o_bias: NO,
    mlp_bias: NO,
    window: SLIDING,
    ..LLAMA
};
const NEOX: Family = Family {
    model_type: "gpt_neox",
    names: Names {
        embed: "gpt_neox.embed_in",
        layers: "gpt_neox.layers",
        norm: "gpt_neox.final_layer_norm",
        qkv: &["attention.query_key_value"],
        o: "attention.dense",
        inner: &["mlp.dense_h_to_4h"],
        outer: "mlp.dense_4h_to_h",
        ..LLAMA.names
    },
    keys: Keys {
        kv_heads: "",
        activation: ("hidden_act", "gelu"),
        eps: ("layer_norm_eps", 1e-5),
        theta: ("rotary_emb_base", 10_000.),
        rotary: ("rotary_pct", 0.25),
        embedding_dropout: ("hidden_dropout", 0.),
        residual_dropout: [("hidden_dropout", 0.); 2],
        ..LLAMA.keys
    },
    norm: NormKind::Layer,
    flow: Flow::Parallel,
    qkv: Qkv::Groups,
    gated: false,
    qkv_bias: Switch::Key("attention_bias", true),
    o_bias: Switch::Key("attention_bias", true),
    mlp_bias: YES,
    ..LLAMA
};
const BLOOM: Family = Family {
    model_type: "bloom",
    names: Names {
        embed: "transformer.word_embeddings",
        embed_norm: "transformer.word_embeddings_layernorm",
        layers: "transformer.h",
        norm: "transformer.ln_f",
        qkv: &["self_attention.query_key_value"],
        o: "self_attention.dense",
        ..NEOX.names
    },
    keys: Keys {
        intermediate: "",
        activation: ("", "gelu_pytorch_tanh"),
        eps: ("layer_norm_epsilon", 1e-5),
        embedding_dropout: ("", 0.),
        ..NEOX.keys
    },
    positions: Positions::Alibi { falcon: false },
    flow: Flow::Sequential,
    qkv_bias: YES,
    o_bias: YES,
    tied: true,
    ..NEOX
};
const GPT2: Family = Family {
    model_type: "gpt2",
    names: Names {
        embed: "transformer.wte",
        positions: "transformer.wpe",
        layers: "transformer.h",
        norm: "transformer.ln_f",
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
        activation: ("activation_function", "gelu_new"),
        eps: ("layer_norm_epsilon", 1e-5),
        embedding_dropout: ("embd_pdrop", 0.1),
        attention_dropout: ("attn_pdrop", 0.1),
        residual_dropout: [("resid_pdrop", 0.1); 2],
        ..LLAMA.keys
    },
    norm: NormKind::Layer,
    positions: Positions::Learned { offset: 0, by_tokens: false },
    qkv: Qkv::Parts,
    gated: false,
    transposed: true,
    qkv_bias: YES,
    o_bias: YES,
    mlp_bias: YES,
    tied: true,
    ..LLAMA
};

pub(super) const FAMILIES: &[Family] = &[
    BLOOM,
    Family {
        model_type: "cohere",
        names: Names { norms: ["input_layernorm", "", "", ""], ..LLAMA.names },
        keys: Keys { eps: ("layer_norm_eps", 1e-5), theta: ("rope_theta", 500_000.), ..LLAMA.keys },
        norm: NormKind::LayerWithoutBias,
        positions: Positions::Rope { side_by_side: true },
        flow: Flow::Parallel,
        mlp_bias: NO,
        tied: true,
        ..LLAMA
    },
    Family {
        model_type: "falcon",
        keys: Keys {
            intermediate: "ffn_hidden_size",
            activation: ("activation", "gelu"),
            residual_dropout: [("attention_dropout", 0.), ("hidden_dropout", 0.)],
            theta: LLAMA.keys.theta,
            rotary: ("", 1.),
            ..BLOOM.keys
        },
        names: Names { embed_norm: "", ..BLOOM.names },
        positions: Positions::Rope { side_by_side: false },
        qkv_bias: Switch::Key("bias", false),
        o_bias: Switch::Key("bias", false),
        mlp_bias: Switch::Key("bias", false),
        ..BLOOM
    },
    GEMMA,
    GEMMA2,
    Family { model_type: "gemma3_text", qk_norm: QkNorm::Heads, ..GEMMA2 },
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
            embedding_dropout: ("embd_pdrop", 0.),
            attention_dropout: ("attn_pdrop", 0.),
            residual_dropout: [("resid_pdrop", 0.); 2],
            ..GPT2.keys
        },
        positions: Positions::Rope { side_by_side: true },
        flow: Flow::Parallel,
        qkv: Qkv::Apart,
        transposed: false,
        qkv_bias: NO,
        o_bias: NO,
        head_bias: true,
        tied: false,
        ..GPT2
    },
    Family { model_type: "granite", ..LLAMA },
    LLAMA,
    Family { model_type: "mistral", qkv_bias: NO, o_bias: NO, mlp_bias: NO, window: YES, ..LLAMA },
    Family {
        model_type: "olmo2",
        names: Names {
            norms: ["", "post_attention_layernorm", "", "post_feedforward_layernorm"],
            ..LLAMA.names
        },
        qk_norm: QkNorm::Whole,
        mlp_bias: NO,
        ..LLAMA
    },
    Family {
        model_type: "opt",
        names: Names {
            embed: "model.decoder.embed_tokens",
            positions: "model.decoder.embed_positions",
            layers: "model.decoder.layers",
            norm: "model.decoder.final_layer_norm",
            o: "self_attn.out_proj",
            inner: &["fc1"],
            outer: "fc2",
            norms: ["self_attn_layer_norm", "", "final_layer_norm", ""],
            ..LLAMA.names
        },
        keys: Keys {
            kv_heads: "",
            intermediate: "ffn_dim",
            activation: ("activation_function", "relu"),
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
        ..LLAMA
    },
    Family {
        model_type: "phi",
        names: Names {
            norm: "model.final_layernorm",
            o: "self_attn.dense",
            inner: &["mlp.fc1"],
            outer: "mlp.fc2",
            norms: ["input_layernorm", "", "", ""],
            qk_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
            ..LLAMA.names
        },
        keys: Keys {
            activation: ("hidden_act", "gelu_new"),
            eps: ("layer_norm_eps", 1e-5),
            rotary: ("partial_rotary_factor", 0.5),
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
        ..LLAMA
    },
    Family {
        model_type: "phi3",
        names: Names { qkv: &["self_attn.qkv_proj"], inner: &["mlp.gate_up_proj"], ..LLAMA.names },
        keys: Keys { residual_dropout: [("resid_pdrop", 0.); 2], ..LLAMA.keys },
        qkv: Qkv::Parts,
        qkv_bias: NO,
        o_bias: NO,
        mlp_bias: NO,
        window: YES,
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
        keys: Keys { theta: ("rope_theta", 2_000_000.), ..LLAMA.keys },
        window: SLIDING,
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
            rotary: ("partial_rotary_factor", 0.25),
            residual_dropout: [("", 0.), ("hidden_dropout", 0.)],
            ..LLAMA.keys
        },
        norm: NormKind::Layer,
        qkv_bias: Switch::Key("use_qkv_bias", false),
        o_bias: NO,
        mlp_bias: NO,
        ..LLAMA
    },
    Family {
        model_type: "starcoder2",
        names: Names { inner: &["mlp.c_fc"], outer: "mlp.c_proj", ..LLAMA.names },
        keys: Keys {
            activation: ("hidden_act", "gelu_pytorch_tanh"),
            eps: ("norm_epsilon", 1e-5),
            embedding_dropout: ("embedding_dropout", 0.),
            residual_dropout: [("residual_dropout", 0.); 2],
            ..LLAMA.keys
        },
        norm: NormKind::Layer,
        gated: false,
        qkv_bias: USE_BIAS,
        o_bias: USE_BIAS,
        mlp_bias: USE_BIAS,
        window: YES,
        tied: true,
        ..LLAMA
    },
];
