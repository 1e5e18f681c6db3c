//! The vision transformer computes what transformers computes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::{common, nets};
use ln_tuning::models::{ViTConfig, ViTForImageClassification};
use ln_tuning::ErrorKind;
use tch::nn::{self, ModuleT};
use tch::{no_grad, Device, Kind, Tensor};

/// The checkpoints of the script, made once for all tests.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vit");
        let _ = std::fs::remove_dir_all(&dir);
        common::run_python("vit.py", &[dir.to_str().unwrap()]);
        dir
    })
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn logits_and_gradients_are_those_of_transformers() {
    tch::set_num_threads(1);
    let mut cases = 0;
    for case in std::fs::read_dir(made()).unwrap() {
        let case = case.unwrap().path();
        if !case.join("reference.st").exists() {
            continue;
        }
        // On disk under their former names.
        let (vs, model) =
            ViTForImageClassification::from_pretrained(&case, Device::Cpu, None).unwrap();
        let reference: HashMap<String, Tensor> =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let logits = model.logits(&reference["images"], false).unwrap();
        assert!(difference(&logits, &reference["logits"]) <= 1e-5, "{case:?}");
        assert!(difference(&model.forward_t(&reference["images"], false), &logits) == 0.);
        logits.square().sum(Kind::Float).backward();
        let variables = vs.variables();
        assert_eq!(variables.len() + 2, reference.len(), "{case:?}: one gradient per variable");
        for (name, variable) in variables {
            let expected = &reference[&format!("grad.{name}")];
            let scale = expected.abs().max().double_value(&[]).max(1.);
            assert!(difference(&variable.grad(), expected) <= 1e-5 * scale, "{case:?} {name}");
        }
        cases += 1;
    }
    assert_eq!(cases, 3);
}

#[test]
fn a_configuration_that_cannot_be_computed_is_refused() {
    for (json, kind) in [
        (r#"{"model_type": "deit"}"#, ErrorKind::Unsupported),
        (r#"{"hidden_act": "mish"}"#, ErrorKind::Unsupported),
        (r#"{"hidden_size": 10, "num_attention_heads": 3}"#, ErrorKind::InvalidConfig),
        (r#"{"image_size": 30, "patch_size": 16}"#, ErrorKind::InvalidConfig),
        (r#"{"patch_size": 0}"#, ErrorKind::InvalidConfig),
        (r#"{"hidden_size": "64"}"#, ErrorKind::InvalidConfig),
        (r#"{"hidden_size": 64"#, ErrorKind::InvalidConfig),
    ] {
        assert_eq!(ViTConfig::from_json(json).unwrap_err().kind(), kind, "{json}");
    }
    assert_eq!(
        ViTConfig::from_file("nowhere/config.json").unwrap_err().kind(),
        ErrorKind::MissingFile
    );
}

#[test]
fn images_of_another_shape_are_refused() {
    let vs = nn::VarStore::new(Device::Cpu);
    let config =
        ViTConfig { hidden_size: 24, num_hidden_layers: 1, image_size: 16, ..Default::default() };
    let model = ViTForImageClassification::new(&vs.root(), &config).unwrap();
    for shape in [vec![2, 3, 16, 15], vec![2, 1, 16, 16], vec![3, 16, 16]] {
        let images = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
        assert_eq!(model.logits(&images, false).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    }
}

#[test]
fn a_new_classifier_stands_on_a_classifiers_and_on_a_base_models_files() {
    tch::set_num_threads(1);
    let images = nets::noise(&[2, 2, 12, 12], 0);
    let open = |case: &str| {
        let (dir, labels) = (made().join(case), ["a", "b", "c"]);
        ViTForImageClassification::from_pretrained_with_labels(dir, labels, Device::Cpu, None)
            .unwrap()
    };
    let logits = |case: &str, seed: usize| {
        let (vs, model) = open(case);
        let mut head = vs.variables().remove("classifier.weight").unwrap();
        no_grad(|| head.copy_(&nets::noise(&head.size(), seed)));
        model.logits(&images, false).unwrap()
    };
    // `plain-base` is the base model in `plain`, with a pooler: the same but for the head.
    let (whole, base) = (logits("plain", 3), logits("plain-base", 3));
    assert_eq!(whole.size(), [2, 3]);
    assert!(difference(&whole, &base) == 0.);
    assert!(difference(&whole, &logits("plain", 4)) > 0.);
    let (vs, _) = open("plain-base");
    assert!(vs.variables().keys().all(|name| !name.contains("pooler")));
    let twice = ["a", "a"];
    let refused = ViTForImageClassification::from_pretrained_with_labels(
        made().join("plain"),
        twice,
        Device::Cpu,
        None,
    );
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
}
