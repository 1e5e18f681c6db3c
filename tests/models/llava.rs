//! LLaVA computes what transformers computes, forwards and backwards, and opens the files of every version.

mod files;
mod refusals;

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use crate::common;
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{
    AnyModel, Form, Frozen, GenerateOptions, Head, ImageTextToText, ImageTextToTextConfig, Inputs,
    Load, Model, ModelConfig, Place,
};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::recompute::Recompute;
use ln_tuning::{merge, AdamW, Error, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

const CASES: [&str; 7] = ["llama", "mistral", "qwen2", "gemma2", "phi3", "next", "granite"];

/// The models that transformers has written, with what they compute.
fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        tch::set_num_threads(1);
        let dir = tempfile::tempdir().unwrap();
        common::run_python("llava.py", &[dir.path().to_str().unwrap()]);
        dir
    };
    MADE.get_or_init(make).path()
}

fn read(path: impl AsRef<Path>) -> Tensors {
    Tensor::read_safetensors(made().join(path)).unwrap().into_iter().collect()
}

fn open(case: &str) -> (VarStore, ImageTextToText) {
    ImageTextToText::from_pretrained(made().join(case), Device::Cpu, None).unwrap()
}

fn off(ours: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(ours.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(0.1);
    (ours - expected).abs().max().double_value(&[]) / scale
}

fn refused<T>(result: Result<T, Error>, kind: ErrorKind, words: &[&str]) {
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// A batch of a case: ids with images, or without.
fn batch<'a>(reference: &'a Tensors, of: &str) -> Inputs<'a> {
    let images = &reference[&format!("{of}.images")];
    Inputs::new(&reference[&format!("{of}.ids")])
        .attention_mask(&reference[&format!("{of}.mask")])
        .pixel_values((images.size()[0] > 0).then_some(images))
        .image_sizes(reference.get(&format!("{of}.image_sizes")))
}

fn cleared(vs: &VarStore) -> Tensors {
    let mut gradients = Tensors::new();
    for (name, mut variable) in vs.variables() {
        let gradient = variable.grad();
        if gradient.defined() && gradient.abs().max().double_value(&[]) > 0. {
            gradients.insert(name, gradient.copy());
        }
        variable.zero_grad();
    }
    gradients
}

#[test]
fn logits_losses_gradients_and_texts_are_those_of_transformers() {
    for case in CASES {
        let reference = read(format!("{case}/reference.st"));
        let (vs, model) = open(case);
        for of in ["right", "left", "none", "one"] {
            let [mask, logits, loss, labels] = ["mask", "logits", "loss", "labels"]
                .map(|what| &reference[&format!("{of}.{what}")]);
            let inputs = batch(&reference, of);
            let shown = mask.unsqueeze(-1).to_kind(Kind::Float);
            let off_logits = off(&(model.logits(inputs).unwrap() * &shown), &(logits * &shown));
            assert!(off_logits <= 1e-4, "{case} {of}: the logits are {off_logits} off");
            let found = model.loss(inputs, labels, &LinearCrossEntropy::default()).unwrap();
            assert!(off(&found, loss) <= 1e-5, "{case} {of}");
            found.backward();
            let gradients = cleared(&vs);
            let mut norms = 0;
            for (name, variable) in vs.variables() {
                let none = variable.zeros_like();
                let expected = reference.get(&format!("{of}.grad.{name}")).unwrap_or(&none);
                let off = off(gradients.get(&name).unwrap_or(&none), expected);
                assert!(off <= 1e-4, "{case} {of}: the gradient of {name} is {off} off");
                norms += usize::from(name.contains("norm") && gradients.contains_key(&name));
            }
            // The language model's, and those of the tower below the states that are taken.
            assert!(norms >= if of == "none" { 5 } else { 11 }, "{case} {of}: {norms}");
        }
        let options = GenerateOptions::default().max_new_tokens(12);
        let new = model.generate(batch(&reference, "left"), &options).unwrap();
        assert_eq!(new, reference["new"], "{case}");
    }
}

/// A configuration without the fields as they stand in the file.
fn settings(config: &Value) -> Vec<String> {
    let config = ImageTextToTextConfig::from_value(config).unwrap();
    let (mut kept, mut outer) = (Vec::new(), None);
    for line in format!("{config:#?}").lines() {
        let depth = line.len() - line.trim_start().len();
        if outer.is_none_or(|outer| depth < outer || (depth == outer && !line.contains('}'))) {
            outer = line.contains("declared: Declared {").then_some(depth);
            if outer.is_none() {
                kept.push(line.to_owned());
            }
        }
    }
    kept
}

#[test]
fn what_a_configuration_does_not_say_is_transformers_default() {
    let text = std::fs::read_to_string(made().join("configurations.json")).unwrap();
    let all: Vec<(Value, Value, Value, Value)> = serde_json::from_str(&text).unwrap();
    assert!(all.len() > 40);
    for (given, full, eos, pad) in all {
        let config = ImageTextToTextConfig::from_value(&given).unwrap();
        for (given, full) in settings(&given).iter().zip(settings(&full)) {
            // StarCoder 2's, which counts for new models alone.
            let initial = given.contains("initializer_range");
            assert!(*given == full || initial, "{given} {full} {}", config.to_json());
        }
        let eos = match &eos {
            Value::Array(ids) => ids.clone(),
            one => Vec::from_iter((!one.is_null()).then(|| one.clone())),
        };
        assert_eq!(json!(config.text().eos_token_ids()), json!(eos), "{given}");
        assert_eq!(json!(config.text().pad_token_id()), pad, "{given}");
        let id = ["image_token_index", "image_token_id"].map(|key| full[key].as_i64());
        assert!(id.contains(&Some(config.image_token_id())), "{given}");
        if given["model_type"] == "llava" {
            let side = full["vision_config"]["image_size"].as_i64().unwrap()
                / full["vision_config"]["patch_size"].as_i64().unwrap();
            assert_eq!(config.tokens_per_image(), side * side);
        }
    }
}

#[test]
fn features_of_the_tower_stand_for_images_and_nothing_is_kept_of_a_tower_that_does_not_train() {
    let reference = read("qwen2/reference.st");
    let (vs, model) = open("qwen2");
    let images = &reference["right.images"];
    let features = model.image_features(images).unwrap();
    assert_eq!(features.size(), [4, model.tokens_per_image(), 4 * 24]);
    let inputs = batch(&reference, "right");
    let cached = inputs.pixel_values(None).image_features(&features);
    assert_eq!(model.logits(inputs).unwrap(), model.logits(cached).unwrap());
    let options = GenerateOptions::default().max_new_tokens(3);
    let new = |of: Inputs| model.generate(of, &options).unwrap();
    let left = batch(&reference, "left");
    assert_eq!(new(left), new(left.pixel_values(None).image_features(&features)));

    // Images in several calls are those in one.
    let parts = [images.narrow(0, 0, 1), images.narrow(0, 1, 3)];
    let parts = parts.map(|images| model.image_features(&images).unwrap());
    assert!(off(&Tensor::cat(&parts, 0), &features) <= 1e-6);

    let config = LnTuningConfig::default().target_pattern(r"model\.language_model\..*norm");
    let before = model.logits(inputs).unwrap();
    let tuned = LnTuningModel::new(&vs, config).unwrap();
    assert_eq!(model.logits(inputs).unwrap(), before);
    assert!(!model.image_features(images).unwrap().requires_grad());
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let loss = || model.loss(inputs, &reference["right.labels"], &LinearCrossEntropy::default());
    let first = loss().unwrap();
    for _ in 0..5 {
        opt.backward_step(&loss().unwrap()).unwrap();
    }
    assert!(loss().unwrap().double_value(&[]) < first.double_value(&[]) - 0.01);
}

#[test]
fn block_checkpointing_and_several_batches_at_once_change_no_gradient() {
    let reference = read("mistral/reference.st");
    let (vs, model) = open("mistral");
    let names: Vec<String> = vs.variables().into_keys().collect();
    let variables: Vec<Tensor> =
        names.iter().map(|name| vs.variables().remove(name).unwrap()).collect();
    let batches = ["right", "none", "one"]
        .map(|of| (batch(&reference, of), &reference[&format!("{of}.labels")]));
    let cross_entropy = LinearCrossEntropy::default().reduction(Reduction::Sum);
    let mut losses = Vec::new();
    for (inputs, labels) in &batches {
        let loss = model.loss(*inputs, labels, &cross_entropy).unwrap();
        loss.backward();
        losses.push(loss.detach());
    }
    let plain = cleared(&vs);
    let one_by_one = |name: &String| -> Option<Tensor> {
        let of = |(inputs, labels): &(Inputs, &Tensor)| {
            let place = names.iter().position(|other| other == name).unwrap();
            let run = Recompute::default().gradients(&variables[place..=place], |tape| {
                model.loss_with(*inputs, labels, &cross_entropy, tape)
            });
            run.unwrap().1.remove(0)
        };
        let all = batches.iter().map(of).filter(Tensor::defined);
        all.reduce(|sum, gradient| sum + gradient)
    };
    let (found, gradients) = Recompute::default()
        .gradients_of_many(&variables, |tape| model.losses_with(&batches, &cross_entropy, tape))
        .unwrap();
    for (found, expected) in found.iter().zip(&losses) {
        assert_eq!(found, expected);
    }
    for (name, gradient) in names.iter().zip(&gradients) {
        match plain.get(name) {
            Some(expected) => assert!(off(gradient, expected) <= 1e-5, "{name}"),
            None => assert!(!gradient.defined() || gradient.abs().max().double_value(&[]) == 0.),
        }
    }
    // Bit for bit those of batch after batch, in the tower too.
    for name in [
        "model.vision_tower.encoder.layers.0.layer_norm1.weight",
        "model.language_model.norm.weight",
    ] {
        let place = names.iter().position(|other| other == name).unwrap();
        assert_eq!(one_by_one(&names[place]).unwrap(), gradients[place], "{name}");
    }
}

#[test]
fn packed_documents_compute_what_their_rows_compute() {
    let reference = read("llama/reference.st");
    let (_, model) = open("llama");
    let inputs = batch(&reference, "right");
    let (ids, mask) = (&reference["right.ids"], &reference["right.mask"]);
    let lengths: Vec<i64> =
        (0..4).map(|row| mask.get(row).sum(Kind::Int64).int64_value(&[])).collect();
    let rows: Vec<Tensor> =
        lengths.iter().enumerate().map(|(row, n)| ids.get(row as i64).narrow(0, 0, *n)).collect();
    let documents: Vec<i64> =
        lengths.iter().enumerate().flat_map(|(row, n)| vec![row as i64; *n as usize]).collect();
    let packed = Tensor::cat(&rows, 0).unsqueeze(0);
    let documents = Tensor::from_slice(&documents).unsqueeze(0);
    let packed =
        Inputs::new(&packed).documents(&documents).pixel_values(&reference["right.images"]);
    let (packed, apart) = (model.logits(packed).unwrap(), model.logits(inputs).unwrap());
    let mut start = 0;
    for (row, length) in lengths.iter().enumerate() {
        let ours = packed.get(0).narrow(0, start, *length);
        assert!(off(&ours, &apart.get(row as i64).narrow(0, 0, *length)) <= 1e-5, "{row}");
        start += length;
    }
}

/// Norms, embedding and head, both layers of the projector: of one state of the tower, and of four.
const PARAMETERS: [u64; 2] = [
    5 * 32 + 2 * 64 * 32 + 24 * 32 + 32 * 32 + 2 * 32,
    5 * 32 + 2 * 64 * 32 + 4 * 24 * 32 + 32 * 32 + 2 * 32,
];

#[test]
fn images_in_tiles_are_seen_in_the_grid_that_transformers_chooses() {
    let reference = read("next/reference.st");
    let (_, model) = open("next");
    let sizes = Vec::<i64>::try_from(reference["right.image_sizes"].view([-1])).unwrap();
    let tokens = |size: &[i64]| model.image_tokens(size[0], size[1]).unwrap();
    let found: i64 = sizes.chunks(2).map(tokens).sum();
    let ids = reference["right.ids"].eq(model.image_token_id()).sum(Kind::Int64);
    assert_eq!(found, ids.int64_value(&[]));
    let text = std::fs::read_to_string(made().join("next/tokens.json")).unwrap();
    let all: Vec<([i64; 2], i64)> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 300);
    for (size, expected) in all {
        assert_eq!(tokens(&size), expected, "{size:?}");
    }
    let inputs = batch(&reference, "one");
    let (shape, argument) = (ErrorKind::ShapeMismatch, ErrorKind::InvalidArgument);
    refused(
        model.logits(inputs.image_sizes(None)),
        argument,
        &["image_sizes (beside pixel_values) are missing"],
    );
    let [narrow, none, other] = [vec![9_i64], vec![0, 5], vec![12, 12, 12, 12]];
    let [narrow, none, other] = [(narrow, [1, 1]), (none, [1, 2]), (other, [2, 2])]
        .map(|(values, shape)| Tensor::from_slice(&values).view(shape));
    refused(model.logits(inputs.image_sizes(&narrow)), shape, &["[images, 2]", "[1, 1]"]);
    refused(model.logits(inputs.image_sizes(&none)), argument, &["0 pixels high"]);
    refused(model.logits(inputs.image_sizes(&other)), shape, &["2 images", "tiles"]);
    let (_, plain) = open("llama");
    refused(plain.logits(inputs), argument, &["llava has no use for image_sizes"]);
    for (changes, word) in [
        (json!({"image_grid_pinpoints": []}), "image_grid_pinpoints"),
        (json!({"image_grid_pinpoints": [[336, 500]]}), "multiples of 'image_size', 336"),
        (json!({"image_grid_pinpoints": [336]}), "image_grid_pinpoints"),
        (json!({"vision_feature_select_strategy": "full"}), "577 hidden states"),
    ] {
        let mut config = changes.clone();
        config["model_type"] = json!("llava_next");
        refused(ImageTextToTextConfig::from_value(&config), ErrorKind::InvalidConfig, &[word]);
    }
}

#[test]
fn a_new_llava_needs_no_embedding_for_its_image_token() {
    let config = json!({
        "model_type": "llava", "image_token_id": 64,
        "text_config": {
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "pad_token_id": 99,
        },
        "vision_config": {
            "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
            "patch_size": 4,
        },
    });
    let config = ImageTextToTextConfig::from_value(&config).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let model = ImageTextToText::new(&vs.root(), &config).unwrap();
    assert!(vs.variables().contains_key("model.multi_modal_projector.linear_2.bias"));
    for mut variable in vs.variables().into_values() {
        let (size, count) = (variable.size(), variable.numel() as i64);
        let waves = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin().view(&size[..]) * 0.4;
        tch::no_grad(|| variable.copy_(&waves));
    }
    let ids = Tensor::from_slice2(&[[3_i64, 64, 64, 64, 64, 9]]);
    let places = Tensor::arange(3 * 8 * 8, (Kind::Float, Device::Cpu)).view([1, 3, 8, 8]);
    let [images, others] = [(&places * 0.37).sin(), (&places * 0.61).cos() * 2.];
    let logits = model.logits(Inputs::new(&ids).pixel_values(&images)).unwrap();
    assert_eq!(logits.size(), [1, 6, 64]);
    let other = model.logits(Inputs::new(&ids).pixel_values(&others)).unwrap();
    assert!(off(&logits.narrow(1, 0, 1), &other.narrow(1, 0, 1)) == 0.);
    assert!(off(&logits.narrow(1, 5, 1), &other.narrow(1, 5, 1)) > 1e-4);
    // Nor for padding, where a row ends before another; penalties pass over both.
    let both = Tensor::cat(&[&ids, &ids.flip([1])], 0);
    let images = Tensor::cat(&[images, others], 0);
    let inputs = Inputs::new(&both).pixel_values(&images);
    let options = GenerateOptions::default().max_new_tokens(4).repetition_penalty(1.5);
    let new = model.generate(inputs, &options).unwrap();
    let first = [0, 1].map(|row| new.int64_value(&[row, 0]));
    assert_ne!(first[0], first[1]);
    let ended = model.generate(inputs, &options.stop_tokens([first[0]])).unwrap();
    assert_eq!(Vec::<i64>::try_from(ended.get(0)).unwrap(), [first[0], 99, 99, 99]);
    assert_eq!(ended.get(1), new.get(1));
}
