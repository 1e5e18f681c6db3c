//! Small models for tests, and exact comparison.
#![allow(dead_code)]

use std::collections::BTreeMap;

#[cfg(feature = "models")]
use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
#[cfg(feature = "models")]
use serde_json::json;
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};

/// norm1 → up → relu → norm2 → head, on random data.
pub struct Net {
    pub vs: VarStore,
    norm1: nn::LayerNorm,
    up: nn::Linear,
    norm2: nn::LayerNorm,
    head: nn::Linear,
    x: Tensor,
    y: Tensor,
}

impl Net {
    pub fn new(kind: Kind) -> Net {
        tch::set_num_threads(1);
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let norm1 = nn::layer_norm(&root / "norm1", vec![8], Default::default());
        // Not tch's random weights: its generator is shared by the tests that run beside each other.
        let zeros = Some(nn::Init::Const(0.));
        let linear = nn::LinearConfig { ws_init: nn::Init::Const(0.), bs_init: zeros, bias: true };
        let up = nn::linear(&root / "up", 8, 12, linear);
        let norm2 = nn::layer_norm(&root / "norm2", vec![12], Default::default());
        let head = nn::linear(&root / "head", 12, 3, linear);
        let x = Tensor::arange(48, (Kind::Float, Device::Cpu)).sin().view([6, 8]);
        let y = Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2]);
        tch::no_grad(|| {
            for (name, mut tensor) in vs.variables() {
                if name.starts_with("up") || name.starts_with("head") {
                    let wave = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu));
                    tensor.copy_(&((wave * 1.7 + name.len() as f64).sin() * 0.4).view_as(&tensor));
                }
            }
        });
        let mut net = Net { vs, norm1, up, norm2, head, x, y };
        net.set_kind(kind);
        net
    }

    pub fn set_kind(&mut self, kind: Kind) {
        match kind {
            Kind::Float => self.vs.float(),
            Kind::Double => self.vs.double(),
            Kind::BFloat16 => self.vs.bfloat16(),
            Kind::Half => self.vs.half(),
            other => panic!("{other:?} is not for models"),
        }
        self.x = self.x.to_kind(kind);
    }

    pub fn logits(&self) -> Tensor {
        let hidden = self.up.forward(&self.norm1.forward(&self.x)).relu();
        self.head.forward(&self.norm2.forward(&hidden))
    }

    pub fn loss(&self) -> Tensor {
        self.logits().to_kind(Kind::Double).cross_entropy_for_logits(&self.y)
    }

    pub fn train(&self, tuned: &LnTuningModel, steps: usize) {
        let mut opt = tuned.optimizer(AdamW::default(), 1e-1).unwrap();
        for _ in 0..steps {
            opt.backward_step_clip_norm(&self.loss(), 1.0).unwrap();
        }
    }

    pub fn flags(&self) -> BTreeMap<String, bool> {
        self.vs.variables().into_iter().map(|(name, t)| (name, t.requires_grad())).collect()
    }
}

/// Numbers that are the same each time and look random, with mean 0 and deviation 1: what depends on them must not
/// depend on who draws from libtorch's generator, which is one for the process.
pub fn noise(shape: &[i64], seed: usize) -> Tensor {
    let count: i64 = shape.iter().product();
    let index = Tensor::arange(count, (Kind::Double, Device::Cpu)) + 1000. * seed as f64;
    let digits = (index * 12.9898).sin() * 43758.5453;
    let uniform = &digits - digits.floor();
    ((uniform - 0.5) * 12_f64.sqrt()).to_kind(Kind::Float).view(shape)
}

/// Gives all variables weights that are the same each time: noise, with the norms' around 1.
pub fn fill(vs: &VarStore, deviation: f64) {
    let mut variables: Vec<_> = vs.variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    tch::no_grad(|| {
        for (seed, (_, mut variable)) in variables.into_iter().enumerate() {
            // Vectors are made with constants, matrices with random numbers.
            if variable.dim() > 1 {
                let _ = variable.zero_();
            }
            let noise = noise(&variable.size(), seed) * deviation;
            let _ = variable.g_add_(&noise.to_kind(variable.kind()));
        }
    });
}

/// The bytes of a tensor, with its kind and shape.
pub fn bits(tensor: &Tensor) -> (Kind, Vec<i64>, Vec<u8>) {
    let tensor = tensor.detach().contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    (tensor.kind(), tensor.size(), bytes)
}

pub type Bits = (Kind, Vec<i64>, Vec<u8>);

pub fn snapshot(vs: &VarStore) -> BTreeMap<String, Bits> {
    vs.variables().iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

pub fn named_bits(tensors: &[(String, Tensor)]) -> BTreeMap<String, Bits> {
    tensors.iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

pub fn named_bits_as(tensors: &[(String, Tensor)], kind: Kind) -> BTreeMap<String, Bits> {
    tensors.iter().map(|(name, tensor)| (name.clone(), bits(&tensor.to_kind(kind)))).collect()
}

/// A configuration for one module.
pub fn only(name: &str) -> LnTuningConfig {
    LnTuningConfig::default().target_modules([name])
}

/// The bytes of an adapter's tensors, by key.
pub fn state_of(tuned: &LnTuningModel, name: &str) -> BTreeMap<String, Bits> {
    named_bits(&tuned.state_dict(name).unwrap())
}

/// `a` on both norms and the head, trained; `b` on norm2 alone, trained.
pub fn two(net: &Net) -> LnTuningModel {
    let config = LnTuningConfig::default().modules_to_save(["head"]);
    let mut tuned = LnTuningModel::with_adapter_name(&net.vs, config, "a").unwrap();
    net.train(&tuned, 3);
    tuned.add_adapter("b", only("norm2")).unwrap();
    tuned.set_adapter("b").unwrap();
    net.train(&tuned, 3);
    tuned.set_adapter("a").unwrap();
    tuned
}

/// A llama of 50 words, the same each time.
#[cfg(feature = "models")]
pub fn llama(size: i64, blocks: i64) -> (VarStore, Decoder) {
    tch::manual_seed(3);
    let config = json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": size, "intermediate_size": size + size / 2,
        "num_hidden_layers": blocks, "num_attention_heads": size / 8, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32, "initializer_range": 0.2,
    });
    let config = DecoderConfig::from_value(&config).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let model = Decoder::new(&vs.root(), &config).unwrap();
    (vs, model)
}

/// Adapters of these names, of which the first is active.
pub fn several(vs: &VarStore, names: &[&str]) -> LnTuningModel {
    let config = LnTuningConfig::default;
    let mut tuned = LnTuningModel::with_adapter_name(vs, config(), names[0]).unwrap();
    names[1..].iter().for_each(|name| tuned.add_adapter(name, config()).unwrap());
    tuned
}
