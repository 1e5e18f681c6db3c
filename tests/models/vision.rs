//! DINOv2 and CLIP compute what transformers computes, forwards and backwards.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use ln_tuning::models::{AnyModel, Clip, ClipConfig, Dinov2, Dinov2Config};
use ln_tuning::{AdamW, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, Norms};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn gradients(vs: &VarStore, reference: &Tensors, of: &str) {
    for (name, variable) in vs.variables() {
        let expected = &reference[&format!("{of}.grad.{name}")];
        let gradient = match variable.grad() {
            gradient if gradient.defined() => gradient,
            // That of pre-training.
            _ => expected.zeros_like(),
        };
        // Some are zero but for rounding: those of the keys' biases.
        let scale = expected.abs().max().double_value(&[]).max(0.1);
        let off = difference(&gradient, expected) / scale;
        assert!(off <= 1e-4, "{of}: the gradient of {name} is {off} off");
    }
}

fn close(what: &str, ours: &Tensor, expected: &Tensor) {
    let scale = expected.abs().max().double_value(&[]).max(1.);
    let off = difference(ours, expected) / scale;
    assert!(off <= 1e-4, "{what} is {off} off");
}

fn dinov2(case: &Path, reference: &Tensors) {
    for size in ["same", "other"] {
        let (vs, model) = Dinov2::from_pretrained(case, Device::Cpu, None).unwrap();
        let images = &reference[&format!("{size}.images")];
        let output = match model.config().labels() {
            Some(labels) => {
                assert_eq!(labels.len(), 5);
                model.logits(images, false).unwrap()
            }
            None => {
                let error = model.logits(images, false).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidState);
                model.hidden_states(images, false).unwrap()
            }
        };
        close(&format!("{case:?} {size}"), &output, &reference[&format!("{size}.output")]);
        output.square().mean(Kind::Float).backward();
        gradients(&vs, reference, size);
        for shape in [[3, 3, 16, 15], [3, 1, 16, 16], [3, 3, 0, 16]] {
            let images = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
            let error = model.hidden_states(&images, false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
        }
    }
}

fn clip(case: &Path, reference: &Tensors) {
    let images = &reference["images"];
    for side in ["right", "left", "none"] {
        let (vs, model) = Clip::from_pretrained(case, Device::Cpu, None).unwrap();
        let of = |what: &str| &reference[&format!("{side}.{what}")];
        let (ids, mask) = (of("ids"), of("mask"));
        let given = (side != "none").then_some(mask);
        let hidden = model.text_hidden_states(ids, given, false).unwrap();
        let shown = mask.unsqueeze(-1).to_kind(Kind::Float);
        close(&format!("{case:?} {side} texts"), &(hidden * shown), of("text_hidden"));
        let hidden = model.image_hidden_states(images, false).unwrap();
        close(&format!("{case:?} images"), &hidden, of("image_hidden"));
        let texts = model.text_features(ids, given, false).unwrap();
        let features = model.image_features(images, false).unwrap();
        let logits = model.logits_per_image(&features, &texts).unwrap();
        assert_eq!(logits.size(), [3, 4]);
        close(&format!("{case:?} {side} logits"), &logits, of("logits"));
        logits.square().mean(Kind::Float).backward();
        gradients(&vs, reference, side);

        for (ids, mask) in [
            (ids.get(0), None),
            (ids.repeat([1, 2]), None),
            (ids.shallow_clone(), Some(ids.get(0))),
        ] {
            let error = model.text_hidden_states(&ids, mask.as_ref(), false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
        }
        let error = model.image_features(&images.narrow(2, 0, 12), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    }
    // Either tower can be tuned by itself.
    let (vs, model) = Clip::from_pretrained(case, Device::Cpu, Kind::BFloat16).unwrap();
    assert_eq!(model.kind(), Kind::BFloat16);
    let config = LnTuningConfig::default().target_pattern(r"vision_model\..*(norm\d?|layrnorm)");
    let tuned = LnTuningModel::new(&vs, config).unwrap();
    assert_eq!(tuned.trainable_parameters().trainable, 2 * 24 * (2 * 2 + 2));
}

/// LN tuning of a CLIP in bf16: the default configuration tunes every norm of both towers, and the loss falls.
fn tune_clip(case: &Path, reference: &Tensors) {
    let (vs, model) = Clip::from_pretrained(case, Device::Cpu, Kind::BFloat16).unwrap();
    assert!(vs.variables().values().all(|tensor| tensor.kind() == Kind::BFloat16));
    // PEFT's table does not know CLIP: its norms show by name and shape, which says the same as our table.
    let of_type = || AdapterOptions::default().model_type("clip");
    for options in [of_type(), of_type().norms(Norms::All), AdapterOptions::default()] {
        let config = LnTuningConfig::default();
        let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
        for (name, tensor) in vs.variables() {
            let norm = name.contains("norm") || name.contains("layrnorm");
            assert_eq!(tensor.requires_grad(), norm, "{name}");
        }
        tuned.unload().unwrap();
    }
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let (ids, images) = (reference["none.ids"].narrow(0, 0, 3), &reference["images"]);
    let images = images.to_kind(Kind::BFloat16);
    let loss = || {
        let texts = model.text_features(&ids, None, true).unwrap();
        let images = model.image_features(&images, true).unwrap();
        let logits = model.logits_per_image(&images, &texts).unwrap().to_kind(Kind::Float);
        logits.cross_entropy_for_logits(&Tensor::from_slice(&[1i64, 2, 0]))
    };
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let first = loss().double_value(&[]);
    for _ in 0..10 {
        opt.backward_step_clip_norm(&loss(), 1.).unwrap();
    }
    let last = loss().double_value(&[]);
    assert!(last < first - 0.01, "{case:?}: the loss falls, from {first} to {last}");
}

/// The dropout of CLIP's attention is applied in the tower that it is set for, while training only.
fn clip_dropout(case: &Path, reference: &Tensors) {
    let path = case.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for tower in ["text", "vision"] {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[format!("{tower}_config")]["attention_dropout"] = json!(0.5);
        std::fs::write(&path, config.to_string()).unwrap();
        let (_, model) = Clip::from_pretrained(case, Device::Cpu, None).unwrap();
        let texts = |train| model.text_features(&reference["none.ids"], None, train).unwrap();
        let images = |train| model.image_features(&reference["images"], train).unwrap();
        let off =
            [difference(&texts(true), &texts(false)), difference(&images(true), &images(false))];
        assert_eq!(off.map(|off| off > 1e-3), [tower == "text", tower == "vision"], "{off:?}");
    }
    std::fs::write(&path, text).unwrap();
}

fn with(case: &Path, changes: &[(&str, Value)]) -> ErrorKind {
    let path = case.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let result = AnyModel::from_pretrained(case, Device::Cpu, None).map(drop);
    std::fs::write(&path, text).unwrap();
    result.unwrap_err().kind()
}

#[test]
fn outputs_and_gradients_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("vision.py", &[dir.path().to_str().unwrap()]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: Tensors =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        match case.to_str().unwrap().contains("clip") {
            true => {
                clip(&case, &reference);
                tune_clip(&case, &reference);
                if case.ends_with("clip") {
                    clip_dropout(&case, &reference);
                }
            }
            false => dinov2(&case, &reference),
        }
        cases += 1;
    }
    assert_eq!(cases, 6);

    let case = dir.path().join("dinov2_classifier");
    for (changes, kind) in [
        (("drop_path_rate", json!(0.1)), ErrorKind::Unsupported),
        (("architectures", json!(["Dinov2Backbone"])), ErrorKind::Unsupported),
        (("hidden_act", json!("mish")), ErrorKind::Unsupported),
        (("num_attention_heads", json!(5)), ErrorKind::InvalidConfig),
        (("patch_size", json!(0)), ErrorKind::InvalidConfig),
        (("num_hidden_layers", json!(3)), ErrorKind::MissingKeys),
        (("num_hidden_layers", json!(1)), ErrorKind::UnexpectedKeys),
        (("mlp_ratio", json!(2)), ErrorKind::ShapeMismatch),
        (("model_type", json!("dinov3")), ErrorKind::Unsupported),
    ] {
        assert_eq!(with(&case, std::slice::from_ref(&changes)), kind, "{changes:?}");
    }
    let case = dir.path().join("clip");
    let deeper = json!({
        "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 40, "image_size": 16,
        "patch_size": 4,
    });
    for (changes, kind) in [
        (("projection_dim", json!(21)), ErrorKind::ShapeMismatch),
        (("text_config", json!("none")), ErrorKind::InvalidConfig),
        (("text_config_dict", json!({"num_attention_heads": 5})), ErrorKind::InvalidConfig),
        (("vision_config_dict", json!({"hidden_act": "mish"})), ErrorKind::Unsupported),
        (("vision_config_dict", json!({"num_hidden_layers": 3})), ErrorKind::ShapeMismatch),
        (("vision_config_dict", deeper), ErrorKind::MissingKeys),
        (("quantization_config", json!({"bits": 4})), ErrorKind::Unsupported),
        (("vision_config", json!({"image_size": [16, 16]})), ErrorKind::InvalidConfig),
    ] {
        assert_eq!(with(&case, std::slice::from_ref(&changes)), kind, "{changes:?}");
    }
    assert_eq!(
        ClipConfig::from_value(&json!({"model_type": "vit"})).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    let vs = VarStore::new(Device::Cpu);
    let config = json!({"model_type": "dinov2", "hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1});
    let made = Dinov2::new(&vs.root(), &Dinov2Config::from_value(&config).unwrap()).unwrap();
    assert_eq!((made.kind(), vs.len()), (Kind::Float, 5 + 2 + 18));
}
