//! The families of decoders, a row each.

use super::bases::{
    ATTENTION_BIAS, BLOOM, GEMMA, GEMMA2, GPT2, LLAMA, NEOX, NO, QWEN2, USE_BIAS, YES,
};
use super::family::{Factor, Family, Keys, Ropes, Rotary, Switch, Windows};
use super::form::{Names, Positions, QkvForm};
use super::variants;
use crate::models::nn::{Flow, NormKind, QkNorm};

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

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::adapter::{LnTuningConfig, NormPlace, Norms, Selection};
    use crate::storage::info::VariableInfo;

    #[test]
    fn every_norm_of_every_family_has_the_place_at_which_its_block_computes_it() {
        let mut seen = 0;
        for family in FAMILIES.iter().filter(|family| family.model_type != "olmo") {
            let Names { norms, qk_norms, norm, embed_norm, layers, .. } = family.names;
            let inner = |names: &[&str]| -> Vec<String> {
                let there = names.iter().filter(|name| !name.is_empty());
                there.map(|name| format!("{layers}.3.{name}")).collect()
            };
            let outer = |name: &str| Vec::from_iter((!name.is_empty()).then(|| name.to_owned()));
            let qk = if family.qk_norm == QkNorm::None { Vec::new() } else { inner(&qk_norms) };
            let mut expected = Vec::new();
            for (names, place) in [
                (inner(&[norms[0], norms[2]]), NormPlace::Pre),
                (inner(&[norms[1], norms[3]]), NormPlace::Post),
                (qk, NormPlace::Qk),
                (outer(norm), NormPlace::Final),
                (outer(embed_norm), NormPlace::Embeddings),
            ] {
                expected.extend(names.into_iter().map(|name| (name, place)));
            }
            expected.sort();
            let variable = |(path, _): &(String, NormPlace)| VariableInfo {
                name: format!("{path}.weight"),
                shape: vec![4],
                kind: Kind::Float,
                is_parameter: true,
            };
            let variables: Vec<VariableInfo> = expected.iter().map(variable).collect();
            let config = LnTuningConfig::default();
            let all = Selection::new(&variables, &config, Some(family.model_type), Norms::All);
            let all = all.unwrap();
            let mut found: Vec<_> =
                all.modules().iter().map(|m| (m.path.clone(), m.place.unwrap())).collect();
            found.sort();
            assert_eq!(found, expected, "{}", family.model_type);
            seen += found.len();
        }
        assert!(seen > 60, "{seen}");
    }
}
