//! Decoders compute what transformers computes, forwards and backwards.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use ln_tuning::models::{
    Decoder, DecoderConfig, GenerateOptions, Head, Inputs, Load, Model, ModelConfig,
};
use ln_tuning::{AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, Norms};
use serde_json::json;
use tch::{nn::VarStore, Device, Kind, Tensor};

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn open(dir: &Path) -> (VarStore, Decoder) {
    open_in(dir, None)
}

fn open_in(dir: &Path, kind: impl Into<Option<Kind>>) -> (VarStore, Decoder) {
    // One case is the directory of a base model.
    let load = Load::on(Device::Cpu).kind(kind).head(Head::LanguageModel);
    Decoder::from_pretrained_with(dir, &load).unwrap()
}

#[test]
fn logits_and_gradients_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("decoders.py", &[dir.path().to_str().unwrap()]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: HashMap<String, Tensor> =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let ids = &reference["input_ids"];
        for side in ["right", "left", "none"] {
            let (vs, model) = open(&case);
            let mask = &reference[&format!("{side}.mask")];
            let given = (side != "none").then_some(mask);
            let logits = model.logits(Inputs::new(ids).attention_mask(given)).unwrap();
            let shown = mask.unsqueeze(-1).to_kind(Kind::Float);
            let expected = &reference[&format!("{side}.logits")] * &shown;
            let off = difference(&(&logits * &shown), &expected);
            assert!(off <= 1e-4, "{case:?} {side}: logits are {off} off");
            assert!(expected.abs().max().double_value(&[]) > 0.1);
            (&logits * &shown).square().mean(Kind::Float).backward();
            for (name, variable) in vs.variables() {
                let expected = &reference[&format!("{side}.grad.{name}")];
                let scale = expected.abs().max().double_value(&[]).max(1.);
                let off = difference(&variable.grad(), expected) / scale;
                assert!(off <= 1e-4, "{case:?} {side}: the gradient of {name} is {off} off");
            }
        }
        texts(&case, &reference);
        if open(&case).1.model_type() == "olmo" {
            nothing_to_tune(&case);
        } else {
            tune(&case, ids);
        }
        cases += 1;
    }
    assert_eq!(cases, 44);
    refusals(dir.path());
}

/// Greedy text, token for token, with padding on the left and without.
fn texts(case: &Path, reference: &HashMap<String, Tensor>) {
    let (_vs, model) = open(case);
    let ids = &reference["input_ids"];
    let options = GenerateOptions::default().max_new_tokens(32);
    for side in ["left", "none"] {
        let mask = &reference[&format!("{side}.mask")];
        let ids = ids * mask;
        let given = (side == "left").then_some(mask);
        let inputs = Inputs::new(&ids).attention_mask(given);
        let mut seen = 0;
        let text = model.generate_streaming(inputs, &options, |tokens| {
            seen += 1;
            tokens.len() == 3
        });
        let (text, expected) = (text.unwrap(), &reference[&format!("{side}.text")]);
        assert_eq!(text.size()[1], seen);
        assert_eq!(text.size(), expected.size(), "{case:?} {side}");
        assert_eq!(
            text.ne_tensor(expected).sum(Kind::Int64).int64_value(&[]),
            0,
            "{case:?} {side}: {text} {expected}"
        );
    }
}

/// LN tuning of the checkpoint in bf16: the loss falls, and PEFT's table picks the norms.
fn tune(case: &Path, ids: &Tensor) {
    let (vs, model) = open_in(case, Kind::BFloat16);
    assert!(vs.variables().values().all(|tensor| tensor.kind() == Kind::BFloat16));
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let loss = |train: bool| {
        let logits = model.logits(Inputs::new(&ids.narrow(1, 0, 10)).train(train)).unwrap();
        let targets = ids.narrow(1, 1, 10).reshape([-1]);
        logits.to_kind(Kind::Float).view([-1, 64]).cross_entropy_for_logits(&targets)
    };
    let mut opt = tuned.optimizer(ln_tuning::AdamW::default(), 1e-2).unwrap();
    // Measured without dropout: its numbers depend on the tests that run beside this one.
    let first = loss(false).double_value(&[]);
    for _ in 0..10 {
        opt.backward_step_clip_norm(&loss(true), 1.).unwrap();
    }
    assert!(loss(false).double_value(&[]) < first - 0.01, "{case:?}: the loss falls");
}

/// The norms of OLMo have no weights.
fn nothing_to_tune(case: &Path) {
    let (vs, model) = Decoder::from_pretrained(case, Device::Cpu, Kind::BFloat16).unwrap();
    assert_eq!(model.kind(), Kind::BFloat16);
    for norms in [Norms::Peft, Norms::All] {
        let options = AdapterOptions::default().norms(norms);
        let config = LnTuningConfig::default();
        let error = LnTuningModel::with_options(&vs, config, "default", &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoTargetModules);
        assert!(error.to_string().contains("the norms of 'olmo' have no weights"), "{error}");
    }
}

/// Checkpoints that are not what they should be.
fn refusals(dir: &Path) {
    let case = dir.join("qwen3");
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(case.join("config.json")).unwrap()).unwrap();
    let with = |changes: &[(&str, serde_json::Value)]| {
        let mut changed = config.clone();
        for (key, value) in changes {
            changed[*key] = value.clone();
        }
        std::fs::write(case.join("config.json"), changed.to_string()).unwrap();
        Decoder::from_pretrained(&case, Device::Cpu, None).map(drop).unwrap_err()
    };
    for (changes, kind) in [
        (
            vec![("num_hidden_layers", json!(4)), ("layer_types", json!(null))],
            ErrorKind::MissingKeys,
        ),
        (vec![("num_hidden_layers", json!(2))], ErrorKind::UnexpectedKeys),
        (vec![("intermediate_size", json!(47))], ErrorKind::ShapeMismatch),
        (vec![("model_type", json!("bert"))], ErrorKind::Unsupported),
        (vec![("hidden_act", json!("mish"))], ErrorKind::Unsupported),
        (vec![("rope_parameters", json!({"rope_type": "axial"}))], ErrorKind::Unsupported),
        (vec![("rope_parameters", json!({"rope_type": "linear"}))], ErrorKind::InvalidConfig),
        (vec![("quantization_config", json!({"bits": 4}))], ErrorKind::Unsupported),
        (vec![("hidden_size", json!(null))], ErrorKind::InvalidConfig),
        (vec![("num_key_value_heads", json!(3))], ErrorKind::InvalidConfig),
        (vec![("layer_types", json!(["chunked_attention"]))], ErrorKind::Unsupported),
    ] {
        let error = with(&changes);
        assert_eq!(error.kind(), kind, "{changes:?}: {error}");
    }
    std::fs::write(case.join("config.json"), config.to_string()).unwrap();
    let (_, model) = open(&case);
    let ids = Tensor::zeros([2, 3], (Kind::Int64, Device::Cpu));
    for (ids, mask) in [(ids.get(0), None), (ids.shallow_clone(), Some(ids.narrow(1, 0, 2)))] {
        let error = model.logits(Inputs::new(&ids).attention_mask(mask.as_ref())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    }
    assert_eq!(model.logits(&(ids + 64)).unwrap_err().kind(), ErrorKind::Torch);
}

#[test]
fn a_model_can_be_made_without_a_checkpoint() {
    let config = json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    });
    let config = DecoderConfig::from_value(&config).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let model = Decoder::new(&vs.root(), &config).unwrap();
    assert_eq!(vs.len(), 2 * 9 + 3);
    let ids = Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([2, 3]);
    assert_eq!(model.logits(&ids).unwrap().size(), [2, 3, 20]);
    // A second model on the same variables is the same model.
    let again = Decoder::new(&vs.root(), &config).unwrap();
    assert_eq!(vs.len(), 2 * 9 + 3);
    assert_eq!(difference(&again.logits(&ids).unwrap(), &model.logits(&ids).unwrap()), 0.);
}
