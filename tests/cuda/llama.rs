//! Llama-3.2-3B with so many layers, its norms tuned.

use ln_tuning::device::best_device;
use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
use serde_json::json;
use tch::nn::VarStore;
use tch::Kind;

pub struct Llama {
    pub model: Decoder,
    pub opt: Optimizer,
    pub tuned: LnTuningModel,
    pub vs: VarStore,
}

impl Llama {
    pub fn new(layers: i64, kind: Kind) -> Self {
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 3072,
            "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 24,
            "num_key_value_heads": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true,
        });
        let mut vs = VarStore::new(best_device());
        vs.set_kind(kind);
        let config = DecoderConfig::from_value(&config).unwrap();
        let model = Decoder::new(&vs.root(), &config).unwrap();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let opt = tuned.optimizer(AdamW::default(), 1e-4).unwrap();
        Llama { model, opt, tuned, vs }
    }
}
