//! The norms of each `model_type` of transformers.

use serde::{Deserialize, Serialize};

use crate::names::pattern::matches_suffix;

/// The norms that are tuned without `target_modules`. In settings: `peft` or `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Norms {
    /// Those of PEFT's own table. For architectures that it lacks: every norm that is recognised.
    #[default]
    Peft,
    /// Every norm of the architecture, those of towers and connectors included. PEFT's table leaves some out, such as
    /// two of five kinds for qwen3.
    All,
}

/// The module names that are tuned by default for a `model_type`, or `None` if it is not known.
pub(crate) fn norm_names(model_type: &str, norms: Norms) -> Option<Vec<&'static str>> {
    let names = names_of(table(norms), model_type)?;
    (!names.is_empty()).then(|| names.split(' ').collect())
}

/// True if the norms of this `model_type` have no weights.
pub(crate) fn has_bare_norms(model_type: &str) -> bool {
    names_of(ALL, model_type).is_some_and(str::is_empty)
}

/// True if the norms of this `model_type` are known by name.
pub(super) fn has_norms(model_type: &str) -> bool {
    names_of(ALL, model_type).is_some_and(|names| !names.is_empty())
}

/// True if a module is a norm of this `model_type` by its name.
pub(super) fn is_named(model_type: &str, path: &str) -> bool {
    let names = names_of(ALL, model_type).unwrap_or_default();
    names.split(' ').any(|name| matches_suffix(path, name))
}

/// The model types of a table, sorted.
pub(crate) fn model_types(norms: Norms) -> Vec<&'static str> {
    let rows = table(norms).iter().filter(|(_, names)| !names.is_empty());
    let mut types: Vec<&str> = rows.flat_map(|(types, _)| types.split(' ')).collect();
    types.sort_unstable();
    types
}

type Table = &'static [(&'static str, &'static str)];

fn table(norms: Norms) -> Table {
    match norms {
        Norms::Peft => PEFT,
        Norms::All => ALL,
    }
}

fn names_of(table: Table, model_type: &str) -> Option<&'static str> {
    let row = table.iter().find(|(types, _)| types.split(' ').any(|known| known == model_type));
    row.map(|(_, names)| *names)
}

/// `TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING` of PEFT 0.21.2.
#[rustfmt::skip]
const PEFT: Table = &[
    ("llama mistral gemma", "input_layernorm post_attention_layernorm norm"),
    ("gemma2 gemma3_text", "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm norm"),
    ("qwen2 qwen3", "post_attention_layernorm"),
    ("phi", "input_layernorm final_layernorm"),
    ("bloom falcon", "input_layernorm post_attention_layernorm ln_f"),
    ("gpt2", "ln_1 ln_2 ln_f"),
    ("gptj", "ln_1 ln_f"),
    ("t5 mt5", "layer_norm final_layer_norm"),
    ("bart", "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm"),
    ("blip-2", "layernorm LayerNorm final_layer_norm self_attn_layer_norm"),
    ("llava", "multi_modal_projector input_layernorm post_attention_layernorm norm embed_tokens lm_head"),
];

/// Every norm with parameters, as transformers 5 names them in memory.
#[rustfmt::skip]
const ALL: Table = &[
    ("llama llama4_text mistral ministral mixtral phi3 qwen2 qwen2_moe granite granitemoe smollm3 glm gpt_oss gemma starcoder2 phimoe nemotron",
        "input_layernorm post_attention_layernorm norm"),
    ("qwen3 qwen3_moe qwen3_next", "q_norm k_norm input_layernorm post_attention_layernorm norm"),
    ("gemma2", "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm norm"),
    ("gemma3_text", "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm norm q_norm k_norm"),
    ("gemma3", "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm norm q_norm k_norm mm_soft_emb_norm layer_norm1 layer_norm2 post_layernorm head.layernorm"),
    // Its norms have no weights.
    ("olmo", ""),
    ("olmo2 olmo3 exaone4", "q_norm k_norm post_attention_layernorm post_feedforward_layernorm norm"),
    ("cohere cohere2", "input_layernorm norm q_norm k_norm"),
    ("glm4", "input_layernorm post_attention_layernorm post_self_attn_layernorm post_mlp_layernorm norm"),
    ("deepseek_v2 deepseek_v3", "q_a_layernorm kv_a_layernorm input_layernorm post_attention_layernorm norm"),
    ("stablelm", "input_layernorm post_attention_layernorm norm q_layernorm k_layernorm"),
    ("phi", "input_layernorm final_layernorm q_layernorm k_layernorm"),
    ("gpt2 gpt_neo gpt_bigcode", "ln_1 ln_2 ln_f ln_cross_attn"),
    ("gptj codegen", "ln_1 ln_f"),
    ("gpt_neox", "input_layernorm post_attention_layernorm final_layer_norm"),
    ("bloom", "word_embeddings_layernorm input_layernorm post_attention_layernorm ln_f"),
    ("falcon", "input_layernorm post_attention_layernorm ln_attn ln_mlp ln_f"),
    ("mpt", "norm_1 norm_2 norm_f q_ln k_ln"),
    ("opt", "self_attn_layer_norm final_layer_norm"),
    ("mamba mamba2 falcon_mamba", "norm norm_f"),
    ("jamba", "input_layernorm pre_ff_layernorm dt_layernorm b_layernorm c_layernorm final_layernorm"),
    ("t5 mt5 umt5", "layer_norm final_layer_norm"),
    ("bart", "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm layernorm_embedding"),
    ("mbart", "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm layernorm_embedding layer_norm"),
    ("pegasus m2m_100 blenderbot blenderbot-small whisper speech_to_text", "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm layer_norm layernorm_embedding"),
    ("marian", "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm"),
    ("bert electra deberta deberta-v2", "LayerNorm"),
    ("roberta xlm-roberta camembert mpnet longformer", "LayerNorm layer_norm"),
    ("distilbert", "LayerNorm sa_layer_norm output_layer_norm vocab_layer_norm"),
    ("albert", "LayerNorm full_layer_layer_norm"),
    ("modernbert", "norm attn_norm mlp_norm final_norm"),
    ("vit deit", "layernorm_before layernorm_after layernorm"),
    // Its `beit.layernorm` is an identity, which PEFT fails to wrap.
    ("beit", "layernorm_before layernorm_after pooler.layernorm"),
    ("swin", "layernorm_before layernorm_after layernorm norm"),
    ("dinov2", "norm1 norm2 layernorm"),
    ("clip clip_vision_model", "layer_norm1 layer_norm2 final_layer_norm pre_layrnorm post_layernorm"),
    ("siglip siglip2 siglip_vision_model", "layer_norm1 layer_norm2 final_layer_norm post_layernorm head.layernorm"),
    ("wav2vec2 hubert", "layer_norm final_layer_norm"),
    ("blip-2", "layernorm LayerNorm final_layer_norm self_attn_layer_norm layer_norm layer_norm1 layer_norm2 post_layernorm"),
    // Models of images and texts: the text model may be of several types, and so may the image tower.
    ("llava llava_next llava_next_video llava_onevision vipllava video_llava paligemma aya_vision got_ocr2 mistral3 internvl idefics2 idefics3 smolvlm",
        "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm norm q_norm k_norm pre_layrnorm layer_norm1 layer_norm2 post_layernorm"),
    ("qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe", "input_layernorm post_attention_layernorm norm norm1 norm2 ln_q q_norm k_norm"),
];
