//! SigLIP, and towers for images as classifiers, compute what transformers computes, forwards and backwards.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common;
use ln_tuning::models::{
    AnyModel, ClipText, ClipVision, Inputs, Load, Model, ModelConfig, Siglip, SiglipConfig,
    SiglipText, SiglipVision, TowerClassifier,
};
use ln_tuning::pretrained::{Head, ModelFiles};
use ln_tuning::{ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

/// The checkpoints of the script, made once for all tests.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        tch::set_num_threads(1);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("siglip");
        let _ = std::fs::remove_dir_all(&dir);
        common::run_python("siglip.py", &[dir.to_str().unwrap()]);
        dir
    })
}

fn reference(case: &str) -> Tensors {
    let path = made().join(case).join("reference.st");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn close(what: &str, ours: &Tensor, expected: &Tensor) {
    let scale = expected.abs().max().double_value(&[]).max(1.);
    let off = difference(ours, expected) / scale;
    assert!(off <= 1e-4, "{what} is {off} off");
}

fn gradients(vs: &VarStore, reference: &Tensors, of: &str) {
    for (name, variable) in vs.variables() {
        let expected = &reference[&format!("{of}.grad.{name}")];
        let gradient = match variable.grad() {
            gradient if gradient.defined() => gradient,
            // The output does not depend on it.
            _ => expected.zeros_like(),
        };
        // Some are zero but for rounding: those of the keys' biases.
        let scale = expected.abs().max().double_value(&[]).max(0.1);
        let off = difference(&gradient, expected) / scale;
        assert!(off <= 1e-4, "{of}: the gradient of {name} is {off} off");
    }
}

fn backward(output: &Tensor) {
    output.square().mean(Kind::Float).backward();
}

#[test]
fn both_towers_of_a_siglip_are_those_of_transformers_with_padding_and_without() {
    for case in ["siglip", "siglip_small_head"] {
        let reference = reference(case);
        let images = &reference["images"];
        for side in ["right", "left", "none"] {
            let (vs, model) =
                Siglip::from_pretrained(made().join(case), Device::Cpu, None).unwrap();
            let of = |what: &str| &reference[&format!("{side}.{what}")];
            let mask = (side != "none").then_some(of("mask"));
            let texts = Inputs::new(of("ids")).attention_mask(mask);
            // Also where there is padding: it looks at the tokens.
            close("texts", &model.hidden_states(texts).unwrap(), of("text_hidden"));
            close("images", &model.hidden_states(images).unwrap(), of("image_hidden"));
            let logits = model.logits(texts.pixel_values(images)).unwrap();
            assert_eq!(logits.size(), [3, 4]);
            close(&format!("{case} {side}"), &logits, of("output"));
            backward(&logits);
            gradients(&vs, &reference, side);
            let error = model.hidden_states(texts.pixel_values(images)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            let long = of("ids").repeat([1, 2]);
            let error = model.text_features(&long).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
        }
    }
}

#[test]
fn a_tower_alone_is_that_of_transformers_under_its_former_names_too_and_for_images_of_other_sizes()
{
    for case in [
        "siglip_vision",
        "siglip_vision_old",
        "siglip_vision_headless",
        "clip_vision",
        "clip_vision_old",
    ] {
        let reference = reference(case);
        let mut sizes = 0;
        for size in ["same", "wide", "turned"] {
            let Some(images) = reference.get(&format!("{size}.images")) else { continue };
            let open = || AnyModel::from_pretrained(made().join(case), Device::Cpu, None).unwrap();
            let (vs, model) = open();
            let hidden = model.hidden_states(images).unwrap();
            close(&format!("{case} {size}"), &hidden, &reference[&format!("{size}.output")]);
            backward(&hidden);
            gradients(&vs, &reference, size);
            assert_eq!(model.logits(images).unwrap_err().kind(), ErrorKind::InvalidState);
            let (vs, model) = open();
            if let AnyModel::SiglipVision(model) = &model {
                let Some(expected) = reference.get(&format!("{size}.pooled")) else {
                    let error = model.features(images).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::InvalidState);
                    assert!(error.to_string().contains("vision_use_head"));
                    continue;
                };
                let pooled = model.features(images).unwrap();
                close(&format!("{case} {size} pooled"), &pooled, expected);
                backward(&pooled);
                gradients(&vs, &reference, &format!("{size}.pooled"));
            }
            sizes += 1;
        }
        assert!(sizes > 0 || case == "siglip_vision_headless");
    }
    let (_, model) =
        SiglipVision::from_pretrained(made().join("siglip_vision"), Device::Cpu, None).unwrap();
    for shape in [vec![3, 3, 16, 15], vec![3, 1, 16, 16], vec![3, 3, 0, 16], vec![3, 16, 16]] {
        let images = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
        assert_eq!(model.features(&images).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    }
}

#[test]
fn a_tower_as_a_classifier_is_that_of_transformers_from_its_own_files_and_from_those_of_both_towers(
) {
    for case in ["siglip_images", "clip_images"] {
        let reference = reference(case);
        let (vs, model) = AnyModel::from_pretrained(made().join(case), Device::Cpu, None).unwrap();
        assert!(matches!(model, AnyModel::TowerClassifier(_)), "{case}");
        let logits = model.logits(&reference["images"]).unwrap();
        assert_eq!(logits.size(), [3, 5]);
        close(case, &logits, &reference["same.output"]);
        backward(&logits);
        gradients(&vs, &reference, "same");
    }
    for case in ["siglip", "clip"] {
        let reference = reference(case);
        let load = Load::on(Device::Cpu).labels(["a", "b", "c"]);
        let files = ModelFiles::open(made().join(case)).unwrap();
        let (vs, model) = AnyModel::from_files(files, &load).unwrap();
        assert!(matches!(model, AnyModel::TowerClassifier(_)), "{case}");
        let names: BTreeSet<String> = vs.variables().into_keys().collect();
        let theirs = reference.keys().filter_map(|key| key.strip_prefix("tuned."));
        let theirs: BTreeSet<String> = theirs
            .filter(|key| *key != "output" && !key.starts_with("grad."))
            .map(String::from)
            .collect();
        assert_eq!(names, theirs, "{case}");
        no_grad(|| {
            for (name, mut variable) in vs.variables() {
                variable.copy_(&reference[&format!("tuned.{name}")]);
            }
        });
        let images = &reference["images"];
        let logits = model.logits(images).unwrap();
        close(case, &logits, &reference["tuned.output"]);
        backward(&logits);
        gradients(&vs, &reference, "tuned");
        assert_eq!(model.config()["id2label"], json!({"0": "a", "1": "b", "2": "c"}));
        let class = model.config()["architectures"][0].clone();
        assert_eq!(
            class,
            if case == "clip" {
                "CLIPForImageClassification"
            } else {
                "SiglipForImageClassification"
            }
        );

        // Without labels the same files are both towers, and a class that they lack is refused.
        let (_, both) = AnyModel::from_pretrained(made().join(case), Device::Cpu, None).unwrap();
        assert_eq!(both.model_type(), case);
        assert!(matches!(both, AnyModel::Clip(_) | AnyModel::Siglip(_)));
        let load = Load::on(Device::Cpu).head(Head::SequenceClassification);
        let files = ModelFiles::open(made().join(case)).unwrap();
        let error = AnyModel::from_files(files, &load).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn a_tower_opens_the_files_of_both_and_leaves_the_other_out() {
    fn check<M: Model>(case: &str, part: &str, input: &str) {
        let reference = reference(case);
        let files = ModelFiles::open(made().join(case)).unwrap();
        let (vs, model) = M::from_files(files, &Load::on(Device::Cpu)).unwrap();
        let inputs = match input {
            "ids" => Inputs::new(&reference[input]),
            _ => Inputs::images(&reference[input]),
        };
        let hidden = model.hidden_states(inputs).unwrap();
        close(&format!("{case} {part}"), &hidden, &reference[&format!("{part}.output")]);
        backward(&hidden);
        gradients(&vs, &reference, part);
        // Saved, the tower stands alone.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), model.config().to_json()).unwrap();
        let tensors: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
        Tensor::write_safetensors(&tensors, dir.path().join("model.safetensors")).unwrap();
        let (_, again) = M::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
        assert_eq!(again.hidden_states(inputs).unwrap(), hidden);
    }
    check::<SiglipVision>("siglip", "Vision", "images");
    check::<SiglipText>("siglip", "Text", "ids");
    check::<ClipVision>("clip", "Vision", "images");
    check::<ClipText>("clip", "Text", "ids");
    // Of another model they open nothing.
    let error = ClipVision::from_pretrained(made().join("siglip"), Device::Cpu, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn the_default_selection_of_a_siglip_is_every_norm() {
    for (case, count) in [("siglip", 2 * (2 * 2 + 1) + 1), ("siglip_vision", 2 * 2 + 2)] {
        let (vs, _) = AnyModel::from_pretrained(made().join(case), Device::Cpu, None).unwrap();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let names: Vec<String> = tuned.layer_status().into_iter().map(|layer| layer.name).collect();
        assert_eq!(names.len(), count, "{names:?}");
        assert!(names.iter().any(|name| name.ends_with("head.layernorm")));
    }
}

#[test]
fn a_siglip_that_cannot_be_computed_is_refused_by_name() {
    let case = made().join("siglip");
    let path = case.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    for (tower, key, value, kind) in [
        ("vision_config", "hidden_act", json!("mish"), ErrorKind::Unsupported),
        ("vision_config", "num_attention_heads", json!(5), ErrorKind::InvalidConfig),
        ("vision_config", "vision_use_head", json!(false), ErrorKind::UnexpectedKeys),
        ("vision_config", "vision_use_head", json!(1), ErrorKind::InvalidConfig),
        ("text_config", "projection_size", json!(25), ErrorKind::ShapeMismatch),
        ("text_config", "num_hidden_layers", json!(3), ErrorKind::MissingKeys),
        ("", "text_config", json!([1]), ErrorKind::InvalidConfig),
        // Images of any resolution: another model.
        ("", "model_type", json!("siglip2"), ErrorKind::Unsupported),
    ] {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        let fields = if tower.is_empty() { &mut config } else { &mut config[tower] };
        fields[key] = value.clone();
        std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        let error = AnyModel::from_pretrained(copy.path(), Device::Cpu, None).unwrap_err();
        assert_eq!(error.kind(), kind, "{tower} {key}: {error}");
    }
    let vs = VarStore::new(Device::Cpu);
    let small = json!({"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8});
    let config = json!({"model_type": "siglip", "text_config": small, "vision_config": small});
    let made = Siglip::new(&vs.root(), &SiglipConfig::from_value(&config).unwrap()).unwrap();
    assert_eq!((made.kind(), vs.len()), (Kind::Float, 2 + 2 * 16 + (2 + 2 + 2) + (3 + 2 + 11)));
    let config = ln_tuning::models::TowerClassifierConfig::from_value(&config).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let made = TowerClassifier::new(&vs.root(), &config).unwrap();
    assert_eq!(made.config().labels(), ["LABEL_0", "LABEL_1"]);
}
