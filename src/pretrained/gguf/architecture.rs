//! The architectures of llama.cpp that are models of this crate, a row each.

use super::fields::Fields;
use super::settings::Config;
use super::special;
use super::tensors::Tensors;
use crate::error::Result;

/// One architecture. What only it has is read by its `special`.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`
    pub(super) name: &'static str,
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    pub(super) keys: Keys,
    /// Names in the file and in memory, without `.weight` and `.bias`; `blk.` stands for a block and its number. The
    /// first that fits counts.
    pub(super) names: &'static [&'static [(&'static str, &'static str)]],
    pub(super) rotary: Rotary,
    /// Rows of queries and keys stand in pairs.
    pub(super) paired: bool,
    /// Queries, keys and values are one matrix, which has groups in memory.
    pub(super) grouped: bool,
    /// Matrices of the blocks are `[in, out]` in memory.
    pub(super) transposed: bool,
    /// Norms have 1 added.
    pub(super) plus_one: bool,
    pub(super) special: fn(&Fields, &Tensors, &mut Config) -> Result<()>,
}

/// Keys of `config.json`. An empty key: there is no such setting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    pub(super) hidden: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) kv_heads: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) positions: &'static str,
    pub(super) eps: &'static str,
}

/// The part of a head that a rope turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotary {
    None,
    All,
    Part,
}

type Names = &'static [(&'static str, &'static str)];

const LLAMA_NAMES: Names = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.attn_norm", "model.layers.{}.input_layernorm"),
    ("blk.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.ffn_norm", "model.layers.{}.post_attention_layernorm"),
    ("blk.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.ffn_down", "model.layers.{}.mlp.down_proj"),
];
const QK_NORM_NAMES: Names = &[
    ("blk.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("blk.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
];
/// Norms behind attention and MLP; Gemma has others before them.
const SANDWICH_NAMES: Names = &[
    ("blk.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
    ("blk.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
    ("blk.ffn_norm", "model.layers.{}.pre_feedforward_layernorm"),
];
const PHI_NAMES: Names = &[
    ("output_norm", "model.final_layernorm"),
    ("blk.attn_qkv", "model.layers.{}.self_attn.q_proj+k_proj+v_proj"),
    ("blk.attn_output", "model.layers.{}.self_attn.dense"),
    ("blk.ffn_up", "model.layers.{}.mlp.fc1"),
    ("blk.ffn_down", "model.layers.{}.mlp.fc2"),
];
const PHI3_NAMES: Names = &[
    ("blk.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
];
const STABLELM_NAMES: Names = &[
    ("blk.attn_q_norm", "model.layers.{}.self_attn.q_layernorm.norms.*"),
    ("blk.attn_k_norm", "model.layers.{}.self_attn.k_layernorm.norms.*"),
];
const STARCODER2_NAMES: Names =
    &[("blk.ffn_up", "model.layers.{}.mlp.c_fc"), ("blk.ffn_down", "model.layers.{}.mlp.c_proj")];
const GPT2_NAMES: Names = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
    ("blk.attn_norm", "transformer.h.{}.ln_1"),
    ("blk.attn_qkv", "transformer.h.{}.attn.c_attn"),
    ("blk.attn_output", "transformer.h.{}.attn.c_proj"),
    ("blk.ffn_norm", "transformer.h.{}.ln_2"),
    ("blk.ffn_up", "transformer.h.{}.mlp.c_fc"),
    ("blk.ffn_down", "transformer.h.{}.mlp.c_proj"),
];
const BLOOM_NAMES: Names = &[
    ("token_embd", "transformer.word_embeddings"),
    ("token_embd_norm", "transformer.word_embeddings_layernorm"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
    ("blk.attn_norm", "transformer.h.{}.input_layernorm"),
    ("blk.attn_qkv", "transformer.h.{}.self_attention.query_key_value"),
    ("blk.attn_output", "transformer.h.{}.self_attention.dense"),
    ("blk.ffn_norm", "transformer.h.{}.post_attention_layernorm"),
    ("blk.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"),
    ("blk.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"),
];
const NEOX_NAMES: Names = &[
    ("token_embd", "gpt_neox.embed_in"),
    ("output_norm", "gpt_neox.final_layer_norm"),
    ("output", "lm_head"),
    ("blk.attn_norm", "gpt_neox.layers.{}.input_layernorm"),
    ("blk.attn_qkv", "gpt_neox.layers.{}.attention.query_key_value"),
    ("blk.attn_output", "gpt_neox.layers.{}.attention.dense"),
    ("blk.ffn_norm", "gpt_neox.layers.{}.post_attention_layernorm"),
    ("blk.ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
    ("blk.ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
];
/// `config` tells two forms of one architecture apart: norms named by the MLP go with one for attention.
const FALCON_NAMES: Names = &[("blk.attn_norm_2", "transformer.h.{}.ln_attn")];

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    keys: Keys {
        hidden: "hidden_size",
        layers: "num_hidden_layers",
        heads: "num_attention_heads",
        kv_heads: "num_key_value_heads",
        intermediate: "intermediate_size",
        positions: "max_position_embeddings",
        eps: "rms_norm_eps",
    },
    names: &[LLAMA_NAMES],
    rotary: Rotary::All,
    paired: true,
    grouped: false,
    transposed: false,
    plus_one: false,
    special: special::llama,
};
const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    paired: false,
    special: special::nothing,
    ..LLAMA
};
const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_type: "gemma",
    class: "GemmaForCausalLM",
    paired: false,
    plus_one: true,
    special: special::nothing,
    ..LLAMA
};
const BLOOM: Architecture = Architecture {
    name: "bloom",
    model_type: "bloom",
    class: "BloomForCausalLM",
    keys: Keys {
        layers: "n_layer",
        heads: "n_head",
        kv_heads: "",
        intermediate: "",
        positions: "",
        eps: "layer_norm_epsilon",
        ..LLAMA.keys
    },
    names: &[BLOOM_NAMES],
    rotary: Rotary::None,
    paired: false,
    grouped: true,
    special: special::bloom,
    ..LLAMA
};

const ARCHITECTURES: &[Architecture] = &[
    BLOOM,
    Architecture {
        name: "command-r",
        model_type: "cohere",
        class: "CohereForCausalLM",
        keys: Keys { eps: "layer_norm_eps", ..LLAMA.keys },
        names: &[QK_NORM_NAMES, LLAMA_NAMES],
        paired: false,
        special: special::cohere,
        ..LLAMA
    },
    Architecture {
        name: "falcon",
        model_type: "falcon",
        class: "FalconForCausalLM",
        keys: Keys {
            intermediate: "ffn_hidden_size",
            positions: "max_position_embeddings",
            layers: "num_hidden_layers",
            heads: "num_attention_heads",
            ..BLOOM.keys
        },
        names: &[FALCON_NAMES, BLOOM_NAMES],
        rotary: Rotary::All,
        special: special::falcon,
        ..BLOOM
    },
    GEMMA,
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        names: &[SANDWICH_NAMES, LLAMA_NAMES],
        special: special::gemma2,
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        names: &[SANDWICH_NAMES, QK_NORM_NAMES, LLAMA_NAMES],
        special: special::gemma3,
        ..GEMMA
    },
    Architecture {
        name: "gpt2",
        model_type: "gpt2",
        class: "GPT2LMHeadModel",
        keys: Keys {
            hidden: "n_embd",
            intermediate: "n_inner",
            positions: "n_positions",
            ..BLOOM.keys
        },
        names: &[GPT2_NAMES],
        grouped: false,
        transposed: true,
        special: special::nothing,
        ..BLOOM
    },
    Architecture {
        name: "gptneox",
        model_type: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        keys: Keys { kv_heads: "", eps: "layer_norm_eps", ..LLAMA.keys },
        names: &[NEOX_NAMES],
        rotary: Rotary::Part,
        special: special::gpt_neox,
        ..BLOOM
    },
    Architecture {
        name: "granite",
        model_type: "granite",
        class: "GraniteForCausalLM",
        special: special::granite,
        ..LLAMA
    },
    LLAMA,
    Architecture {
        name: "olmo",
        model_type: "olmo",
        class: "OlmoForCausalLM",
        keys: Keys { eps: "", ..LLAMA.keys },
        special: special::olmo,
        ..LLAMA
    },
    Architecture {
        name: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        names: &[SANDWICH_NAMES, QK_NORM_NAMES, LLAMA_NAMES],
        paired: false,
        special: special::attention_bias,
        ..LLAMA
    },
    Architecture {
        name: "phi2",
        model_type: "phi",
        class: "PhiForCausalLM",
        keys: Keys { eps: "layer_norm_eps", ..LLAMA.keys },
        names: &[PHI_NAMES, LLAMA_NAMES],
        rotary: Rotary::Part,
        paired: false,
        special: special::nothing,
        ..LLAMA
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        names: &[PHI3_NAMES, LLAMA_NAMES],
        rotary: Rotary::Part,
        paired: false,
        special: special::phi3,
        ..LLAMA
    },
    QWEN2,
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        names: &[QK_NORM_NAMES, LLAMA_NAMES],
        special: special::attention_bias,
        ..QWEN2
    },
    Architecture {
        name: "smollm3",
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        special: special::smollm3,
        ..LLAMA
    },
    Architecture {
        name: "stablelm",
        model_type: "stablelm",
        class: "StableLmForCausalLM",
        keys: Keys { eps: "layer_norm_eps", ..LLAMA.keys },
        names: &[STABLELM_NAMES, LLAMA_NAMES],
        rotary: Rotary::Part,
        paired: false,
        special: special::stablelm,
        ..LLAMA
    },
    Architecture {
        name: "starcoder2",
        model_type: "starcoder2",
        class: "Starcoder2ForCausalLM",
        keys: Keys { eps: "norm_epsilon", ..LLAMA.keys },
        names: &[STARCODER2_NAMES, LLAMA_NAMES],
        paired: false,
        special: special::starcoder2,
        ..LLAMA
    },
];

impl Architecture {
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|known| known.name == name)
    }

    pub(super) fn known() -> Vec<&'static str> {
        ARCHITECTURES.iter().map(|known| known.name).collect()
    }

    /// True if its norms are RMS norms.
    pub(super) fn is_rms(&self) -> bool {
        self.keys.eps == LLAMA.keys.eps
    }
}
