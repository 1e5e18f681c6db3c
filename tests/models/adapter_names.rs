//! A batch whose rows use different adapters: each row is computed as under `set_adapter`.

mod heads;
pub mod seeing;
mod states;
mod tables;
mod texts;
mod whole;

use crate::nets::{self, bits, noise};
use ln_tuning::models::{
    Clip, Decoder, DecoderConfig, Dinov2, Encoder, Head, Inputs, Model, ModelConfig, Seq2Seq,
    Siglip, TowerClassifier, ViTForImageClassification,
};
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
    pub vs: VarStore,
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
    /// The embedding of a decoder.
    pub fn embedding(&self) -> Tensor {
        let mut all = self.vs.variables().into_iter();
        all.find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap().1
    }

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
        Case { name, vs, model, tuned }
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
pub fn families() -> Vec<&'static str> {
    let mut families = DecoderConfig::model_types();
    families.retain(|family| *family != "olmo");
    families
}

/// Inputs with the names of the rows, or without.
pub fn named(inputs: Inputs<'_>, mixed: bool) -> Inputs<'_> {
    if mixed {
        return inputs.adapter_names(&NAMES);
    }
    inputs
}

#[test]
fn each_row_of_a_decoder_has_its_adapter_bit_for_bit() {
    let (ids, masks) = (ids(), masks());
    for family in families() {
        let mut case: Case<Decoder> =
            Case::new(&decoder(family), Head::LanguageModel, Kind::Float, &[]);
        for mask in [None, Some(&masks[0]), Some(&masks[1])] {
            case.check(&NAMES, 0., |model, mixed| {
                model.logits(named(Inputs::new(&ids).attention_mask(mask), mixed))
            });
        }
    }
}

/// RMSNorms round once, as the kernel does: bit for bit. The means of a LayerNorm's kernel are sums in another order in
/// these kinds, so that few of its numbers are one unit off.
#[test]
fn in_bf16_and_f16_rows_are_those_of_set_adapter_bit_for_bit_or_to_few_units() {
    let ids = ids();
    for (kind, unit) in [(Kind::BFloat16, 2_f64.powi(-8)), (Kind::Half, 2_f64.powi(-11))] {
        for (family, units) in [("llama", 0.), ("gemma3_text", 0.), ("qwen3", 0.), ("gpt2", 4.)] {
            let mut case: Case<Decoder> =
                Case::new(&decoder(family), Head::LanguageModel, kind, &[]);
            case.check(&NAMES, units * unit, |model, mixed| {
                model.logits(named(Inputs::new(&ids), mixed))
            });
        }
    }
}

#[test]
fn each_row_of_an_encoder_has_its_adapter_bit_for_bit() {
    let (ids, masks) = (ids(), masks());
    for model_type in ["bert", "roberta", "xlm-roberta", "distilbert"] {
        let config = encoder(model_type);
        for head in [Head::MaskedLm, Head::SequenceClassification, Head::TokenClassification] {
            let mut case: Case<Encoder> = Case::new(&config, head, Kind::Float, &[]);
            case.check(&NAMES, 0., |model, mixed| {
                model.logits(named(Inputs::new(&ids).attention_mask(&masks[1]), mixed))
            });
        }
    }
}

#[test]
fn both_stacks_of_an_encoder_decoder_have_the_adapters_of_rows_bit_for_bit() {
    let (ids, masks) = (ids(), masks());
    let decoder_ids = ids.narrow(1, 0, 5).contiguous();
    for config in [t5(), bart()] {
        let mut case: Case<Seq2Seq> = Case::new(&config, Head::LanguageModel, Kind::Float, &[]);
        case.check(&NAMES, 0., |model, mixed| {
            let inputs = Inputs::new(&ids).attention_mask(&masks[1]).decoder_ids(&decoder_ids);
            model.logits(named(inputs, mixed))
        });
        case.check(&NAMES, 0., |model, mixed| model.encode(named(Inputs::new(&ids), mixed)));
    }
    // Some layers are in another kind than the norms, which round once in a fused function, and twice here.
    let mut case: Case<Seq2Seq> = Case::new(&t5(), Head::LanguageModel, Kind::Half, &[]);
    case.check(&NAMES, 2f64.powi(-10), |model, mixed| {
        model.logits(named(Inputs::new(&ids).decoder_ids(&decoder_ids), mixed))
    });
}

/// Small settings under the names of every family.
pub fn encoder(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "dim": 16,
        "num_attention_heads": 4, "intermediate_size": 24, "hidden_dim": 24, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 16, "pad_token_id": 0,
    })
}

pub fn t5() -> Value {
    json!({
        "model_type": "t5", "vocab_size": 40, "d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 2, "num_heads": 2,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8, "decoder_start_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 0,
    })
}

pub fn bart() -> Value {
    json!({
        "model_type": "bart", "vocab_size": 40, "d_model": 12, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 20, "pad_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2,
        "forced_eos_token_id": null,
    })
}

pub fn image_model(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4,
    })
}

/// A tower for texts and one for images.
pub fn towers(model_type: &str) -> Value {
    let text = json!({
        "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 10, "eos_token_id": 2,
    });
    json!({
        "model_type": model_type, "text_config": text, "projection_dim": 8,
        "vision_config": image_model(&format!("{model_type}_vision_model")),
    })
}

#[test]
fn each_image_of_a_vision_model_has_its_adapter_bit_for_bit() {
    let images = noise(&[4, 3, 8, 8], 50);
    let pixels = |mixed| named(Inputs::images(&images), mixed);
    let class = Head::ImageClassification;
    Case::<ViTForImageClassification>::new(&image_model("vit"), class, Kind::Float, &[]).check(
        &NAMES,
        0.,
        |model, mixed| model.logits(pixels(mixed)),
    );
    Case::<Dinov2>::new(&image_model("dinov2"), class, Kind::Float, &[]).check(
        &NAMES,
        0.,
        |model, mixed| model.logits(pixels(mixed)),
    );
    let ids = ids();
    let texts = |mixed| named(Inputs::new(&ids), mixed);
    for model_type in ["clip", "siglip"] {
        let config = towers(model_type);
        Case::<TowerClassifier>::new(&config, class, Kind::Float, &[]).check(
            &NAMES,
            0.,
            |model, mixed| model.logits(pixels(mixed)),
        );
        if model_type == "clip" {
            let mut case = Case::<Clip>::new(&config, Head::None, Kind::Float, &[]);
            case.check(&NAMES, 0., |model, mixed| model.image_features(pixels(mixed)));
            case.check(&NAMES, 0., |model, mixed| model.text_features(texts(mixed)));
            let few = images.narrow(0, 0, 2);
            let error = case.model.logits(texts(true).pixel_values(&few)).unwrap_err();
            assert!(error.to_string().contains("4 texts and 2 images"), "{error}");
        } else {
            let mut case = Case::<Siglip>::new(&config, Head::None, Kind::Float, &[]);
            case.check(&NAMES, 0., |model, mixed| model.image_features(pixels(mixed)));
            case.check(&NAMES, 0., |model, mixed| model.text_features(texts(mixed)));
            // The score of a text and an image of one row.
            let both = |mixed| texts(mixed).pixel_values(&images);
            let own = case.row_by_row(&NAMES, &|model| {
                Ok(model.logits(both(false))?.diagonal(0, 0, 1).contiguous())
            });
            let mixed = no_grad(|| case.model.logits(both(true)).unwrap()).diagonal(0, 0, 1);
            assert!((mixed - own).abs().max().double_value(&[]) < 1e-5);
        }
    }
}
