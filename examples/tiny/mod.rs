//! A language model of bytes, trained on the spot, so that the examples need no download.

use anyhow::Result;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use serde_json::json;
use tch::nn::{AdamW, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};

/// The tokens of a text: its bytes.
pub fn tokens(text: &str) -> Vec<i64> {
    text.bytes().map(i64::from).collect()
}

/// A small Llama with all weights trained on `text`, for a few seconds.
pub fn decoder(text: &str, device: Device) -> Result<(VarStore, Decoder)> {
    let config = json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "initializer_range": 0.1,
    });
    tch::manual_seed(0);
    let vs = VarStore::new(device);
    let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
    let mut opt = AdamW::default().build(&vs, 3e-3)?;
    let windows = Tensor::from_slice(&tokens(text)).unfold(0, 64, 1);
    for _ in 0..300 {
        let chosen = Tensor::randint(windows.size()[0], [8], (Kind::Int64, Device::Cpu));
        let labels = windows.index_select(0, &chosen);
        let ids = labels.to_device(device);
        opt.backward_step(&model.loss(&ids, &labels, &LinearCrossEntropy::default())?);
    }
    Ok((vs, model))
}
