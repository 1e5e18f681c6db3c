//! LLaVA computes what transformers computes, forwards and backwards, and opens the files of every version.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{AnyModel, GenerateOptions, ImageTextToText, Inputs, Model};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

const CASES: [&str; 5] = ["llama", "mistral", "qwen2", "gemma2", "granite"];

fn off(ours: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(ours.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(0.1);
    (ours - expected).abs().max().double_value(&[]) / scale
}

fn read(path: &Path) -> Tensors {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
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

fn computes(case: &Path) {
    let reference = read(&case.join("reference.st"));
    let (vs, model) = ImageTextToText::from_pretrained(case, Device::Cpu, None).unwrap();
    for of in ["right", "left", "none", "one"] {
        let of_batch = |what: &str| &reference[&format!("{of}.{what}")];
        let (ids, mask, images) = (of_batch("ids"), of_batch("mask"), of_batch("images"));
        let images = (images.size()[0] > 0).then_some(images);
        let inputs = Inputs::new(ids).attention_mask(mask).pixel_values(images);
        let logits = model.logits(inputs).unwrap();
        let shown = mask.unsqueeze(-1).to_kind(Kind::Float);
        let off_logits = off(&(logits * &shown), &(of_batch("logits") * &shown));
        assert!(off_logits <= 1e-4, "{case:?} {of}: the logits are {off_logits} off");
        let cross_entropy = LinearCrossEntropy::default();
        let loss = model.loss(inputs, of_batch("labels"), &cross_entropy).unwrap();
        assert!(off(&loss, of_batch("loss")) <= 1e-5, "{case:?} {of}");
        loss.backward();
        gradients(&vs, &reference, of);
    }
    let (ids, mask) = (&reference["left.ids"], &reference["left.mask"]);
    let inputs = Inputs::new(ids).attention_mask(mask).pixel_values(&reference["left.images"]);
    let new = model.generate(inputs, &GenerateOptions::default().max_new_tokens(12)).unwrap();
    assert_eq!(new, reference["new"], "{case:?}");
}

#[test]
fn logits_losses_gradients_and_texts_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("llava.py", &[dir.path().to_str().unwrap()]);
    for case in CASES {
        computes(&dir.path().join(case));
    }
    let reference = read(&dir.path().join("llama/reference.st"));
    for layout in ["layout_a", "layout_b", "layout_c", "layout_d"] {
        let (_, model) =
            AnyModel::from_pretrained(dir.path().join(layout), Device::Cpu, None).unwrap();
        let inputs = Inputs::new(&reference["one.ids"]).pixel_values(&reference["one.images"]);
        let off = off(&model.logits(inputs).unwrap(), &reference["one.logits"]);
        assert!(off <= 1e-4, "{layout}: {off}");
    }
}
