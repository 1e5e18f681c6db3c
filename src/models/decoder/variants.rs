//! The options of single families that change how a block is put together.

use serde_json::Value;

use super::config::DecoderConfig;
use super::form::Positions;
use crate::error::Result;
use crate::models::config::{flag, integer_or, not_implemented, size};
use crate::models::nn::{Activation, Flow, QkNorm};

/// Nothing special.
pub(super) fn as_it_is(_: &mut DecoderConfig, _: &Value) -> Result<()> {
    Ok(())
}

pub(super) fn gpt2(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    let scale =
        if flag(value, "scale_attn_weights", true)? { config.attention_scales[0] } else { 1. };
    let by_layer = flag(value, "scale_attn_by_inverse_layer_idx", false)?;
    for (layer, of_layer) in config.attention_scales.iter_mut().enumerate() {
        *of_layer = if by_layer { scale / (layer + 1) as f64 } else { scale };
    }
    Ok(())
}

/// The first files say `gelu` and mean its approximation; transformers reads them so.
pub(super) fn gemma(config: &mut DecoderConfig, _: &Value) -> Result<()> {
    if config.activation == Activation::Gelu {
        config.activation = Activation::GeluTanh;
    }
    Ok(())
}

pub(super) fn cohere(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    if flag(value, "use_qk_norm", false)? {
        config.qk_norm = QkNorm::OwnHeads { listed: false };
    }
    Ok(())
}

pub(super) fn stablelm(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    if flag(value, "qk_layernorm", false)? {
        config.qk_norm = QkNorm::OwnHeads { listed: true };
    }
    if flag(value, "use_parallel_residual", false)? {
        config.flow = Flow::Parallel;
        config.names.norms[2] = "";
    }
    Ok(())
}

pub(super) fn phi(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    if flag(value, "qk_layernorm", false)? {
        config.qk_norm = QkNorm::Heads;
    }
    Ok(())
}

pub(super) fn gpt_neox(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    if !flag(value, "use_parallel_residual", true)? {
        config.flow = Flow::Sequential;
    }
    Ok(())
}

pub(super) fn opt(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    if !flag(value, "do_layer_norm_before", true)? {
        config.flow = Flow::NormedSums;
        config.names.norms = ["", "self_attn_layer_norm", "", "final_layer_norm"];
        config.names.norm = "";
    }
    Ok(())
}

pub(super) fn bloom(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    if flag(value, "apply_residual_connection_post_layernorm", false)? {
        config.flow = Flow::SequentialFromNorm;
    }
    // Summed in slices, where transformers leaves out the bias.
    if integer_or(value, "pretraining_tp", 1)? > 1 && flag(value, "slow_but_exact", false)? {
        return not_implemented("'slow_but_exact' with 'pretraining_tp' above 1");
    }
    Ok(())
}

pub(super) fn falcon(config: &mut DecoderConfig, value: &Value) -> Result<()> {
    let new = flag(value, "new_decoder_architecture", false)?;
    config.kv_heads = if new {
        let given = ["num_kv_heads", "n_head_kv"];
        let given = given.iter().find(|key| value.get(**key).is_some_and(|v| !v.is_null()));
        given.map_or(Ok(config.heads), |key| size(value, key))?
    } else if flag(value, "multi_query", true)? {
        1
    } else {
        config.heads
    };
    if flag(value, "alibi", false)? {
        config.positions = Positions::Alibi { falcon: true };
    } else {
        // transformers has it with the bias alone.
        config.attention_dropout = 0.;
    }
    if !flag(value, "parallel_attn", true)? {
        if new {
            return not_implemented("'new_decoder_architecture' without 'parallel_attn'");
        }
        return bloom(config, value);
    }
    config.flow = Flow::Parallel;
    config.residual_dropout[0] = 0.;
    if config.residual_dropout[1] != 0. {
        return not_implemented("'hidden_dropout' with 'parallel_attn'");
    }
    let norms = integer_or(value, "num_ln_in_parallel_attn", if new { 2 } else { 1 })?;
    config.names.norms = match (new, norms) {
        (true, 2) => ["ln_attn", "", "ln_mlp", ""],
        (_, 1) => ["input_layernorm", "", "", ""],
        _ => return not_implemented("this 'num_ln_in_parallel_attn'"),
    };
    Ok(())
}
