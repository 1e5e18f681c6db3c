//! A base whose matrices are in the order that the CPU multiplies fastest with computes what a plain one computes.

use crate::nets;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    Decoder, DecoderConfig, Form, Frozen, GenerateOptions, Inputs, Load, Model, ModelConfig,
};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};
use tempfile::TempDir;

const MATRIX: &str = "model.layers.1.mlp.up_proj.weight";

fn packed() -> Load {
    Load::on(Device::Cpu).frozen(Frozen::default().form(Form::Packed))
}

/// Large enough to be packed.
fn decoder(model_type: &str) -> TempDir {
    tch::set_num_threads(1);
    let config = json!({
        "model_type": model_type, "hidden_size": 256, "intermediate_size": 300, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 71, "max_position_embeddings": 64,
        "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 64, "rms_norm_eps": 1e-5, "pad_token_id": 0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    });
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
    nets::fill(&vs, 0.05);
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(&vs, dir.path(), &config.to_string()).unwrap();
    dir
}

fn ids() -> Tensor {
    let index = Tensor::arange(2 * 11, (Kind::Int64, Device::Cpu)) + 1;
    (index.square() * 29 + index * 7).remainder(71).view([2, 11])
}

/// The distance of two tensors, beside the largest number.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    let [found, expected] = [found, expected].map(|tensor| tensor.to_kind(Kind::Double));
    let most = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / most
}

/// The loss of a step and its flat gradient, with and without checkpointing.
fn steps(vs: &VarStore, model: &Decoder) -> Vec<(f64, Tensor)> {
    let tuned = LnTuningModel::new(vs, LnTuningConfig::default()).unwrap();
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let (ids, loss) = (ids(), LinearCrossEntropy::default());
    let mut step = |recomputed: bool| {
        optimizer.zero_grad().unwrap();
        let loss = if recomputed {
            let forward = |tape: &mut _| model.loss_with(Inputs::new(&ids), &ids, &loss, tape);
            optimizer.backward_recompute(&Recompute::default(), forward).unwrap()
        } else {
            let loss = model.loss(Inputs::new(&ids), &ids, &loss).unwrap();
            optimizer.backward(&loss).unwrap();
            loss
        };
        let variables = optimizer.trainable_variables().unwrap();
        let gradients: Vec<Tensor> = variables
            .iter()
            .map(|variable| variable.grad().to_kind(Kind::Float).view(-1))
            .collect();
        (loss.double_value(&[]), Tensor::cat(&gradients, 0))
    };
    let both = vec![step(false), step(true)];
    tuned.unload().unwrap();
    both
}

#[test]
fn losses_gradients_tokens_and_files_are_those_of_a_plain_base() {
    for (model_type, kind) in [
        ("llama", Kind::Float),
        ("llama", Kind::BFloat16),
        ("gpt2", Kind::Float),
        ("phi3", Kind::BFloat16),
    ] {
        let dir = decoder(model_type);
        let near = if kind == Kind::Float { 1e-4 } else { 0.05 };
        let plain = Load::on(Device::Cpu).kind(kind);
        let (plain_vs, plain) = Decoder::from_pretrained_with(dir.path(), &plain).unwrap();
        let (vs, model) = Decoder::from_pretrained_with(dir.path(), &packed().kind(kind)).unwrap();
        let before = no_grad(|| model.logits(&ids())).unwrap();
        let difference = off(&before, &no_grad(|| plain.logits(&ids())).unwrap());
        assert!(difference < near, "{model_type} {kind:?}: {difference}");
        // The order is another, so the last bits are.
        assert!(difference > 0. || kind == Kind::BFloat16, "{model_type}: nothing is packed");
        for (found, expected) in steps(&vs, &model).iter().zip(steps(&plain_vs, &plain)) {
            assert!(
                (found.0 - expected.0).abs() < near,
                "{model_type}: {} {}",
                found.0,
                expected.0
            );
            let difference = off(&found.1, &expected.1);
            assert!(difference < near, "{model_type} {kind:?}: gradients {difference} off");
        }
        // Attached, trained through and detached, it computes the same bits.
        assert_eq!(no_grad(|| model.logits(&ids())).unwrap(), before);
        for (name, variable) in plain_vs.variables() {
            assert_eq!(vs.variables()[&name], variable, "{name}");
        }
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        let [one, other] = [&vs, &plain_vs].map(|vs| {
            let dir = tempfile::tempdir().unwrap();
            pretrained::save(vs, dir.path(), &config).unwrap();
            std::fs::read(dir.path().join("model.safetensors")).unwrap()
        });
        assert!(one == other);
        if kind == Kind::Float {
            let options = GenerateOptions::default().max_new_tokens(5);
            let [found, expected] =
                [&model, &plain].map(|model| model.generate(&ids(), &options).unwrap());
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_matrix_that_is_written_to_counts_with_its_new_numbers() {
    let dir = decoder("llama");
    let (plain_vs, plain) = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
    let (vs, model) = Decoder::from_pretrained_with(dir.path(), &packed()).unwrap();
    let logits = |model: &Decoder| no_grad(|| model.logits(&ids())).unwrap();
    let before = logits(&model);
    let _ = no_grad(|| [&vs, &plain_vs].map(|vs| vs.variables()[MATRIX].get(3).fill_(2.)));
    assert!(off(&logits(&model), &before) > 1e-3);
    assert!(off(&logits(&model), &logits(&plain)) < 1e-5);
}

#[test]
fn what_cannot_be_packed_or_trained_is_refused_by_name() {
    let dir = decoder("llama");
    let load = |load: &Load| Decoder::from_pretrained_with(dir.path(), load);
    let error = load(&packed().kind(Kind::Half)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("only f32 and bf16"), "{error}");
    let (vs, model) = load(&packed()).unwrap();
    let before = model.logits(&ids()).unwrap();
    let layer = LnTuningConfig::default().target_modules(["mlp.up_proj"]);
    let error = LnTuningModel::new(&vs, layer).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("up_proj.weight' is frozen and kept as packed"), "{text}");
    assert_eq!(model.logits(&ids()).unwrap(), before);
    // Heads and embeddings stay plain.
    let head = LnTuningConfig::default().modules_to_save(["lm_head"]);
    LnTuningModel::new(&vs, head).unwrap();

    let error = "packed, streamed".parse::<Frozen>().unwrap_err();
    assert!(error.to_string().contains("choose one"), "{error}");
    let files = || ModelFiles::open(dir.path()).unwrap();
    let bytes = |load: &Load| Decoder::base_bytes(files(), load).unwrap().all;
    assert!(bytes(&packed()) > 2 * bytes(&Load::on(Device::Cpu)));
}
