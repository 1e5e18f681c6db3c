//! Settings and tensors that only one architecture has.

use serde_json::{json, Value};

use super::fields::{by_number, Fields};
use super::settings::Config;
use super::tensors::Tensors;
use crate::error::Result;

/// Blocks of Gemma 2 27B and of Gemma 3 27B, whose scores are scaled by the width over the heads.
const LARGE_GEMMA: [i64; 2] = [46, 62];

pub(super) fn nothing(_: &Fields, _: &Tensors, _: &mut Config) -> Result<()> {
    Ok(())
}

pub(super) fn attention_bias(_: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    config.set("attention_bias", tensors.first_has("attn_q.bias"));
    Ok(())
}

pub(super) fn llama(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    if let Some(window) = window(fields)? {
        // llama.cpp has one architecture for both, and computes without the window.
        config.become_a("mistral", "MistralForCausalLM");
        config.set("sliding_window", window);
        return Ok(());
    }
    config.set("mlp_bias", tensors.first_has("ffn_gate.bias"));
    attention_bias(fields, tensors, config)
}

pub(super) fn smollm3(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    // llama.cpp has no key for it.
    config.set("no_rope_layer_interval", 4);
    config.set("mlp_bias", tensors.first_has("ffn_gate.bias"));
    attention_bias(fields, tensors, config)
}

pub(super) fn granite(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    let own = (config.head_dim as f64).powf(-0.5);
    for (key, ours, default) in [
        ("attention.scale", "attention_multiplier", own),
        ("embedding_scale", "embedding_multiplier", 1.),
        ("residual_scale", "residual_multiplier", 1.),
        ("logit_scale", "logits_scaling", 1.),
    ] {
        config.set(ours, fields.number(key)?.filter(|scale| *scale != 0.).unwrap_or(default));
    }
    config.set("mlp_bias", tensors.first_has("ffn_gate.bias"));
    attention_bias(fields, tensors, config)
}

pub(super) fn olmo(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    let clip = fields.number("attention.clamp_kqv")?.filter(|clip| *clip != 0.);
    config.set("clip_qkv", clip);
    attention_bias(fields, tensors, config)
}

pub(super) fn cohere(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    match fields.number("logit_scale")? {
        Some(scale) if scale != 0. => config.set("logit_scale", scale),
        other => return fields.refuse("logit_scale", json!(other), "a number other than 0"),
    }
    config.set("use_qk_norm", tensors.first_has("attn_q_norm.weight"));
    attention_bias(fields, tensors, config)
}

pub(super) fn gemma2(fields: &Fields, _: &Tensors, config: &mut Config) -> Result<()> {
    for (key, default) in [("attn_logit_softcapping", 50.), ("final_logit_softcapping", 30.)] {
        config.set(key, cap(fields, key)?.unwrap_or(json!(default)));
    }
    config.set("sliding_window", fields.integer("attention.sliding_window")?.unwrap_or(4096));
    config.set("hidden_activation", "gelu_pytorch_tanh");
    layers_with_windows(fields, config, 2)?;
    scores(fields, config)
}

pub(super) fn gemma3(fields: &Fields, _: &Tensors, config: &mut Config) -> Result<()> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config.set(key, cap(fields, key)?.unwrap_or(Value::Null));
    }
    let full = config.value["rope_parameters"].clone();
    let theta = fields.number("rope.freq_base_swa")?.unwrap_or(10_000.);
    match window(fields)? {
        Some(window) => {
            config.set("sliding_window", window);
            layers_with_windows(fields, config, 6)?;
        }
        None => {
            fields.no_use_for(&["attention.sliding_window_pattern"]);
            let layers = vec!["full_attention"; config.layers as usize];
            config.set("layer_types", layers);
        }
    }
    let sliding = json!({ "rope_type": "default", "rope_theta": theta });
    config.set("rope_parameters", json!({ "full_attention": full, "sliding_attention": sliding }));
    config.set("hidden_activation", "gelu_pytorch_tanh");
    scores(fields, config)
}

pub(super) fn phi3(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    config.set("sliding_window", window(fields)?);
    let long = tensors.factors("rope_factors_long.weight")?;
    let (Some(long), Some(short)) = (long, tensors.factors("rope_factors_short.weight")?) else {
        return Ok(());
    };
    let original = fields.integer("rope.scaling.original_context_length")?;
    let original = original.unwrap_or(config.positions);
    config.set("original_max_position_embeddings", original);
    let mut parameters = config.value["rope_parameters"].clone();
    parameters["rope_type"] = "longrope".into();
    parameters["original_max_position_embeddings"] = original.into();
    parameters["short_factor"] = json!(short);
    parameters["long_factor"] = json!(long);
    if let Some(factor) = fields.number("rope.scaling.attn_factor")?.filter(|f| *f != 0.) {
        parameters["attention_factor"] = factor.into();
    }
    config.set("rope_parameters", parameters);
    Ok(())
}

pub(super) fn starcoder2(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    config.set("use_bias", tensors.first_has("attn_q.bias"));
    config.set("sliding_window", window(fields)?);
    Ok(())
}

pub(super) fn stablelm(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    // As llama.cpp has it: the tensors decide, whatever the key says.
    fields.no_use_for(&["use_parallel_residual"]);
    config.set("use_parallel_residual", !tensors.first_has("ffn_norm.weight"));
    config.set("use_qkv_bias", tensors.first_has("attn_q.bias"));
    config.set("qk_layernorm", tensors.first_has("attn_q_norm.weight"));
    Ok(())
}

pub(super) fn gpt_neox(fields: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    let parallel = fields.flag("use_parallel_residual")?.unwrap_or(true);
    config.set("use_parallel_residual", parallel);
    config.set("attention_bias", tensors.first_has("attn_qkv.bias"));
    Ok(())
}

pub(super) fn bloom(_: &Fields, _: &Tensors, config: &mut Config) -> Result<()> {
    config.set("seq_length", config.positions);
    Ok(())
}

pub(super) fn falcon(_: &Fields, tensors: &Tensors, config: &mut Config) -> Result<()> {
    let two_norms = tensors.first_has("attn_norm_2.weight");
    let new = two_norms || config.kv_heads != 1;
    config.set("new_decoder_architecture", new);
    config.set("multi_query", true);
    config.set("parallel_attn", true);
    config.set("alibi", false);
    config.set("bias", tensors.first_has("attn_qkv.bias"));
    if new {
        config.set("num_kv_heads", config.kv_heads);
        config.set("num_ln_in_parallel_attn", if two_norms { 2 } else { 1 });
    }
    Ok(())
}

/// 0 stands for none.
fn window(fields: &Fields) -> Result<Option<i64>> {
    Ok(fields.integer("attention.sliding_window")?.filter(|window| *window > 0))
}

/// A bound on scores or logits; 0 stands for none, and null says so.
fn cap(fields: &Fields, key: &str) -> Result<Option<Value>> {
    Ok(fields.number(key)?.map(|cap| if cap == 0. { Value::Null } else { cap.into() }))
}

fn layers_with_windows(fields: &Fields, config: &mut Config, every: i64) -> Result<()> {
    let pattern = fields.pattern("attention.sliding_window_pattern", config.layers)?;
    let pattern = pattern.unwrap_or_else(|| by_number(every, config.layers));
    let named = |window: &bool| if *window { "sliding_attention" } else { "full_attention" };
    config.set("layer_types", pattern.iter().map(named).collect::<Vec<_>>());
    Ok(())
}

/// Gemma scales scores by one over the root of a whole number, of which files say nothing: what llama.cpp takes.
fn scores(fields: &Fields, config: &mut Config) -> Result<()> {
    let large = LARGE_GEMMA.contains(&config.layers);
    let own = if large { config.width / config.heads } else { config.head_dim };
    let scale = fields.number("attention.scale")?.filter(|scale| *scale != 0.);
    let scalar = scale.map_or(own as f64, |scale| scale.powi(-2));
    let whole = scalar.round();
    if !(1. ..1e9).contains(&whole) || (scalar / whole - 1.).abs() > 1e-5 {
        let expected = "one over the root of a whole number";
        return fields.refuse("attention.scale", scale.unwrap_or_default(), expected);
    }
    config.set("query_pre_attn_scalar", whole as i64);
    Ok(())
}
