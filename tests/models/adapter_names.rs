//! A batch whose rows use different adapters: each row is computed as under `set_adapter`.

use crate::nets::{self, bits, noise};
use ln_tuning::models::{Decoder, DecoderConfig, Head, Inputs, Model, ModelConfig};
use ln_tuning::{AdapterOptions, LnTuningConfig, LnTuningModel, LoadOptions, Norms, Result};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};

/// Of the rows of a batch. `c` is active, and no row has it.
pub const NAMES: [&str; 4] = ["a", "b", "__base__", "a"];

/// A model with adapters `a` (all norms and biases of norms, and what `saved` says), `b` (only some of its norms) and
/// `c` (all norms).
pub struct Case<M> {
    pub name: String,
    _vs: VarStore,
    pub model: M,
    pub tuned: LnTuningModel,
}

/// Gives an adapter weights that are the same each time.
pub fn shift(tuned: &mut LnTuningModel, name: &str, seed: usize) {
    let state =
        tuned.state_dict(name).unwrap().into_iter().enumerate().map(|(at, (key, tensor))| {
            let shift = noise(&tensor.size(), 1000 * seed + at) * 0.3;
            (key, tensor.to_kind(Kind::Float) + shift)
        });
    let state: Vec<_> = state.collect();
    tuned.load_state_dict(name, &state, &LoadOptions::default()).unwrap();
}

/// Attaches `a`, `b` and `c`.
pub fn attach(vs: &VarStore, saved: &[&str]) -> LnTuningModel {
    let options = AdapterOptions::default().norms(Norms::All);
    let config = LnTuningConfig::default();
    let with_saved = config.clone().modules_to_save(saved.iter().copied());
    let mut tuned = LnTuningModel::with_options(vs, with_saved, "a", &options).unwrap();
    // Of all that `a` tunes, every other module.
    let some: Vec<String> = tuned.layer_status().into_iter().map(|layer| layer.name).collect();
    let some = some.into_iter().filter(|name| !saved.iter().any(|saved| name.ends_with(saved)));
    let some: Vec<String> = some.step_by(2).collect();
    tuned.add_adapter("b", LnTuningConfig::default().target_modules(some)).unwrap();
    tuned.add_adapter_with("c", config, &options).unwrap();
    for (seed, name) in ["a", "b", "c"].into_iter().enumerate() {
        shift(&mut tuned, name, seed + 1);
    }
    tuned.set_adapter("c").unwrap();
    tuned
}

impl<M: Model> Case<M> {
    pub fn new(config: &Value, head: Head, kind: Kind, saved: &[&str]) -> Self {
        tch::set_num_threads(1);
        let name = format!("{} {head:?} {kind:?}", config["model_type"]);
        let config = M::Config::from_value(config).unwrap().with_head(head).unwrap();
        let mut vs = VarStore::new(Device::Cpu);
        let model = M::new(&vs.root(), &config).unwrap_or_else(|e| panic!("{name}: {e}"));
        nets::fill(&vs, 0.2);
        match kind {
            Kind::BFloat16 => vs.bfloat16(),
            Kind::Half => vs.half(),
            _ => vs.float(),
        }
        let tuned = attach(&vs, saved);
        Case { name, _vs: vs, model, tuned }
    }

    /// `run` of all rows under one adapter.
    pub fn under(&mut self, name: &str, run: &dyn Fn(&M) -> Result<Tensor>) -> Tensor {
        let before = self.tuned.active_adapter().unwrap();
        let found = if name == "__base__" {
            self.tuned.with_disabled(|| no_grad(|| run(&self.model))).unwrap().unwrap()
        } else {
            self.tuned.set_adapter(name).unwrap();
            no_grad(|| run(&self.model)).unwrap()
        };
        self.tuned.set_adapter(&before).unwrap();
        found
    }

    /// The rows, each under its adapter. They differ between adapters.
    pub fn row_by_row(&mut self, names: &[&str], run: &dyn Fn(&M) -> Result<Tensor>) -> Tensor {
        let rows: Vec<Tensor> = names
            .iter()
            .enumerate()
            .map(|(row, name)| self.under(name, run).narrow(0, row as i64, 1))
            .collect();
        Tensor::cat(&rows, 0)
    }

    /// `run` gets inputs without names and those with names.
    pub fn check(
        &mut self,
        names: &[&str],
        tolerance: f64,
        run: impl Fn(&M, bool) -> Result<Tensor>,
    ) {
        let expected = self.row_by_row(names, &|model| run(model, false));
        let found =
            no_grad(|| run(&self.model, true)).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let plain = self.under("c", &|model| run(model, false));
        assert!(bits(&plain) != bits(&expected), "{}: adapters change nothing", self.name);
        let scale = expected.to_kind(Kind::Float).abs().max().double_value(&[]);
        let off = (&found - &expected).to_kind(Kind::Float).abs().max().double_value(&[]) / scale;
        assert!(off <= tolerance, "{}: {off} off", self.name);
        assert!(tolerance > 0. || bits(&found) == bits(&expected), "{}: {off} off", self.name);
    }
}

/// Small settings under the names of every family.
pub fn decoder(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "n_embd": 16, "word_embed_proj_dim": 16,
        "intermediate_size": 24, "ffn_dim": 24, "n_inner": 24, "num_hidden_layers": 2, "n_layer": 2,
        "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "n_positions": 64, "n_ctx": 64, "rotary_dim": 4, "pad_token_id": 0, "sliding_window": 4, "head_dim": 4,
        "hidden_act": "silu", "use_qk_norm": true, "qk_layernorm": true, "new_decoder_architecture": false,
        "no_rope_layers": [1, 0], "partial_rotary_factor": 0.5, "rotary_pct": 0.5, "eos_token_id": 39, "bos_token_id": 1,
    })
}

pub fn ids() -> Tensor {
    let ids = Tensor::arange(4 * 6, (Kind::Int64, Device::Cpu)) * 7 + 3;
    ids.remainder(37).view([4, 6]) + 1
}

pub fn masks() -> [Tensor; 2] {
    let right = Tensor::from_slice2(&[
        [1_i64, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
    ]);
    [right.flip([1]), right]
}

/// The families of decoders that have norms to tune.
fn families() -> Vec<&'static str> {
    let mut families = DecoderConfig::model_types();
    families.retain(|family| *family != "olmo");
    families
}

#[test]
fn each_row_of_a_decoder_has_its_adapter_bit_for_bit() {
    let (ids, masks) = (ids(), masks());
    for family in families() {
        let mut case: Case<Decoder> =
            Case::new(&decoder(family), Head::LanguageModel, Kind::Float, &[]);
        for mask in [None, Some(&masks[0]), Some(&masks[1])] {
            case.check(&NAMES, 0., |model, mixed| {
                let inputs = Inputs::new(&ids).attention_mask(mask);
                model.logits(if mixed { inputs.adapter_names(&NAMES) } else { inputs })
            });
        }
    }
}
