//! The names of Llama-3.2-3B: 28 layers, 57 norms of 3,072 in bf16. Frozen weights are tiny, as no operation on
//! adapters touches them.

use ln_tuning::LnTuningConfig;
use tch::nn::{Init, VarStore};
use tch::Device;

const LAYERS: i64 = 28;
const SIZE: i64 = 3072;

pub fn base() -> VarStore {
    let mut vs = VarStore::new(Device::Cpu);
    let model = vs.root() / "model";
    let one = Init::Const(1.);
    let _ = (&model / "embed_tokens").var("weight", &[1, 1], one);
    for layer in 0..LAYERS {
        let path = &model / "layers" / layer;
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            let _ = (&path / "self_attn" / name).var("weight", &[1, 1], one);
        }
        for name in ["gate_proj", "up_proj", "down_proj"] {
            let _ = (&path / "mlp" / name).var("weight", &[1, 1], one);
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            let _ = (&path / name).var("weight", &[SIZE], one);
        }
    }
    let _ = (&model / "norm").var("weight", &[SIZE], one);
    let _ = (vs.root() / "lm_head").var("weight", &[1, 1], one);
    vs.bfloat16();
    vs
}

pub fn config() -> LnTuningConfig {
    LnTuningConfig::default().target_modules([
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    ])
}
