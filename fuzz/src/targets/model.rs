//! Model directories of several families.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use fastrand::Rng;
use ln_tuning::models::{
    AnyModel, Decoder, DecoderConfig, Encoder, EncoderConfig, Inputs, Model as _, ModelConfig,
    Seq2Seq, Seq2SeqConfig, ViTConfig, ViTForImageClassification,
};
use ln_tuning::pretrained::save;
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::{Seeds, Target};
use crate::damage;

pub struct Model(Seeds);

impl Model {
    pub fn new() -> Result<Self> {
        let mut seeds = Seeds::new()?;
        for (name, config) in configs() {
            make(&seeds.add(name), &config).with_context(|| name.to_owned())?;
        }
        Ok(Model(seeds))
    }
}

impl Target for Model {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        self.0.copy(dir, rng)?;
        // Mostly the configuration: its numbers are trusted most.
        if rng.u8(..4) > 0 {
            damage::file(&dir.join("config.json"), rng)?;
        } else {
            damage::directory(dir, rng)?;
        }
        Ok(())
    }

    fn run(&self, dir: &Path) -> Result<()> {
        let (_vs, model) = AnyModel::from_pretrained(dir, Device::Cpu, None)?;
        let ids = Tensor::from_slice(&[1_i64, 2, 3]).view([1, 3]);
        let images = Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu));
        let texts = model.hidden_states(Inputs::new(&ids));
        let pictures = model.hidden_states(Inputs::images(&images));
        let _hidden = texts.or(pictures)?;
        Ok(())
    }
}

/// Writes a random model.
pub fn make(dir: &Path, config: &Value) -> Result<()> {
    fs::create_dir_all(dir)?;
    let vs = VarStore::new(Device::Cpu);
    let (root, model_type) = (vs.root(), config["model_type"].as_str().unwrap_or_default());
    let is = |known: Vec<&str>| known.contains(&model_type);
    if is(DecoderConfig::model_types()) {
        Decoder::new(&root, &DecoderConfig::from_value(config)?)?;
    } else if is(EncoderConfig::model_types()) {
        Encoder::new(&root, &EncoderConfig::from_value(config)?)?;
    } else if is(Seq2SeqConfig::model_types()) {
        Seq2Seq::new(&root, &Seq2SeqConfig::from_value(config)?)?;
    } else if is(ViTConfig::model_types()) {
        ViTForImageClassification::new(&root, &ViTConfig::from_value(config)?)?;
    }
    save(&vs, dir, &config.to_string())?;
    Ok(())
}

/// Configurations of tiny models.
pub fn configs() -> Vec<(&'static str, Value)> {
    let sizes = json!({
        "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32,
    });
    let with = |more: Value| {
        let mut all = sizes.clone();
        for (key, value) in more.as_object().expect("an object") {
            all[key] = value.clone();
        }
        all
    };
    vec![
        (
            "llama",
            with(
                json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
            ),
        ),
        (
            "gemma3",
            with(
                json!({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4,
            "sliding_window_pattern": 2, "query_pre_attn_scalar": 4, "rope_theta": 1e4, "rope_local_base_freq": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": true}),
            ),
        ),
        (
            "qwen3",
            with(
                json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": true}),
            ),
        ),
        (
            "gpt2",
            json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}),
        ),
        (
            "bert",
            with(
                json!({"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}),
            ),
        ),
        (
            "t5",
            json!({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2,
            "num_decoder_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}),
        ),
        (
            "vit",
            with(
                json!({"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_act": "gelu", "image_size": 8, "patch_size": 4, "num_channels": 3,
            "layer_norm_eps": 1e-12, "qkv_bias": true, "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}),
            ),
        ),
    ]
}
