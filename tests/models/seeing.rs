//! Models of images and texts with a tower of SigLIP compute what transformers computes, forwards and backwards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    AnyModel, GenerateOptions, ImageTextToText, ImageTextToTextConfig, Inputs, Load, Model,
    ModelConfig,
};
use ln_tuning::pretrained::{Head, ModelFiles};
use ln_tuning::recompute::{Blocks, Recompute};
use ln_tuning::{ErrorKind, LnTuningConfig, LnTuningModel, Norms};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

const CASES: [&str; 6] = ["gemma3", "gemma3_odd", "idefics3", "smolvlm", "llava", "llava_middle"];

/// The checkpoints of the script, made once for all tests.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        tch::set_num_threads(1);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seeing");
        let _ = std::fs::remove_dir_all(&dir);
        common::run_python("seeing.py", &[dir.to_str().unwrap()]);
        dir
    })
}

fn open(case: &str) -> (VarStore, ImageTextToText, Tensors) {
    let path = made().join(case);
    let (vs, model) = ImageTextToText::from_pretrained(&path, Device::Cpu, None).unwrap();
    let reference = path.join("reference.st");
    let reference = Tensor::read_safetensors(reference).unwrap().into_iter().collect();
    (vs, model, reference)
}

fn off(ours: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(ours.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(0.1);
    (ours - expected).abs().max().double_value(&[]) / scale
}

/// The inputs of a batch of the reference; its rows have so many images of all.
fn inputs<'r>(reference: &'r Tensors, of: &str, images: &'r Tensor) -> Inputs<'r> {
    let inputs = Inputs::new(&reference[&format!("{of}.ids")])
        .attention_mask(&reference[&format!("{of}.mask")])
        .pixel_attention_mask(reference.get(&format!("{of}.pixels")));
    inputs.pixel_values((images.size()[0] > 0).then_some(images))
}

fn images(reference: &Tensors, of: &str) -> Tensor {
    let count = match of {
        "none" => 0,
        "one" => 1,
        "two" => 2,
        _ => 4,
    };
    reference["images"].narrow(0, 0, count)
}

fn gradients(vs: &VarStore, reference: &Tensors, of: &str) {
    let mut norms = 0;
    for (name, mut variable) in vs.variables() {
        let gradient = variable.grad();
        match reference.get(&format!("{of}.grad.{name}")) {
            Some(expected) => {
                assert!(gradient.defined(), "{of}: {name}");
                let off = off(&gradient, expected);
                assert!(off <= 1e-4, "{of}: the gradient of {name} is {off} off");
                norms += usize::from(name.contains("norm"));
            }
            None => {
                let none = !gradient.defined() || gradient.abs().max().double_value(&[]) == 0.;
                assert!(none, "{of}: {name}");
            }
        }
        variable.zero_grad();
    }
    assert!(norms >= 5, "{norms}");
}

#[test]
fn logits_losses_gradients_and_texts_are_those_of_transformers() {
    for case in CASES {
        let (vs, model, reference) = open(case);
        for of in ["right", "left", "none", "one", "two", "padded"] {
            if !reference.contains_key(&format!("{of}.ids")) {
                continue;
            }
            let images = images(&reference, of);
            let inputs = inputs(&reference, of, &images);
            let logits = model.logits(inputs).unwrap();
            let shown = reference[&format!("{of}.mask")].unsqueeze(-1).to_kind(Kind::Float);
            let expected = &reference[&format!("{of}.logits")];
            let off_logits = off(&(logits * &shown), &(expected * &shown));
            assert!(off_logits <= 1e-4, "{case} {of}: the logits are {off_logits} off");
            let labels = &reference[&format!("{of}.labels")];
            let loss = model.loss(inputs, labels, &LinearCrossEntropy::default()).unwrap();
            assert!(off(&loss, &reference[&format!("{of}.loss")]) <= 1e-5, "{case} {of}");
            loss.backward();
            gradients(&vs, &reference, of);
        }
        let images = images(&reference, "left");
        let prompt = inputs(&reference, "left", &images);
        let new = model.generate(prompt, &GenerateOptions::default().max_new_tokens(12)).unwrap();
        assert_eq!(new, reference["new"], "{case}");
    }
}
