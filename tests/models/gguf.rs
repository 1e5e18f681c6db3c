//! GGUF files are opened as the models that they are: what they compute is what transformers computes.

use std::collections::HashMap;
use std::path::Path;

use crate::{common, frozen};
use ln_tuning::models::{Decoder, Load, Model};
use ln_tuning::pretrained::ModelFiles;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b).abs().max().double_value(&[])
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// The settings of `own` that say another thing in `original`, which leaves some to defaults.
fn differing(own: &Value, original: &Value) -> Vec<String> {
    let same = |own: &Value, original: &Value| match (own.as_f64(), original.as_f64()) {
        (Some(own), Some(original)) => (own - original).abs() <= 1e-6 * original.abs(),
        _ => original.is_null() || own == original,
    };
    let mut found = Vec::new();
    for (key, value) in own.as_object().unwrap() {
        match original.get(key) {
            Some(other) if value.is_object() && other.is_object() => {
                found.extend(differing(value, other));
            }
            Some(other) if !same(value, other) => {
                found.push(format!("'{key}': {value}, expected {other}"));
            }
            _ => (),
        }
    }
    found
}

#[test]
fn logits_of_a_gguf_file_are_those_of_transformers_in_every_architecture() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("gguf_bases.py", &[dir.path().to_str().unwrap()]);
    let (mut cases, mut kept) = (0, 0);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|ending| ending != "gguf") {
            continue;
        }
        let reference = tensors(&file.with_extension("st"));
        let original: Value =
            serde_json::from_slice(&std::fs::read(file.with_extension("json")).unwrap()).unwrap();
        let own = ModelFiles::open(&file).unwrap().config().clone();
        let differing = differing(&own, &original);
        // llama.cpp has one architecture for both, which differ in their windows only.
        let expected = if file.ends_with("mistral.gguf") {
            vec!["'model_type': \"llama\", expected \"mistral\""]
        } else {
            vec![]
        };
        assert_eq!(differing, expected, "{file:?}");
        let load = Load::on(Device::Cpu).kind(Kind::Float);
        let (_vs, model) = Decoder::from_pretrained_with(&file, &load)
            .unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let logits = model.logits(&reference["input_ids"]).unwrap();
        for (name, expected) in reference.iter().filter(|(name, _)| name.ends_with("logits")) {
            let off = difference(&logits, expected);
            assert!(off <= 1e-4, "{file:?}: logits are {off} off {name}");
            assert!(expected.abs().max().double_value(&[]) > 0.1);
        }
        blocks_are_those_of_the_tensors(&file);
        kept += usize::from(frozen::check_blocks_of(&file, &reference["input_ids"]));
        cases += 1;
    }
    assert_eq!(cases, 35);
    llama_cpp_agrees(dir.path());
    transformers_opens_what_is_saved(dir.path());
    assert!(kept >= 20, "only {kept} files have blocks");
}

/// The likeliest tokens behind a row of ids, where transformers does not read the file. Products of llama.cpp with
/// weights in blocks are in eight bits.
fn llama_cpp_agrees(dir: &Path) {
    let cases = ["llama3", "gemma3", "falcon_40b", "gptneox", "stablelm_options", "olmo2"];
    let ids: Vec<i64> = (3..23).map(|id| id * 37 % 61 + 3).collect();
    let files = cases.map(|case| dir.join(case).with_extension("gguf").display().to_string());
    let prompt = serde_json::to_string(&ids).unwrap();
    let mut arguments = vec!["1", &prompt];
    arguments.extend(files.iter().map(String::as_str));
    let answer = common::run_python("gguf_llama_cpp.py", &arguments);
    let answers: Vec<Value> = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    for (file, steps) in files.iter().zip(&answers) {
        let (_vs, model) = Decoder::from_pretrained(file, Device::Cpu, None).unwrap();
        let logits = model.logits(&Tensor::from_slice(&ids).unsqueeze(0)).unwrap();
        let own = logits.get(0).get(-1).log_softmax(-1, Kind::Float);
        let likeliest = steps[0][1].as_array().unwrap();
        assert_eq!(likeliest.len(), 5);
        for pair in likeliest {
            let (token, expected) = (pair[0].as_i64().unwrap(), pair[1].as_f64().unwrap());
            let found = own.double_value(&[token]);
            assert!((found - expected).abs() < 0.05, "{file}: {token}: {found} {expected}");
        }
    }
}

/// The configuration and the weights are a directory of transformers.
fn transformers_opens_what_is_saved(dir: &Path) {
    let cases = ["gemma2_caps", "gemma3", "falcon_40b", "phi3_long", "stablelm_options", "gpt2"];
    for case in cases {
        let files = ModelFiles::open(dir.join(case).with_extension("gguf")).unwrap();
        let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
        std::fs::create_dir(dir.join(case)).unwrap();
        let config = files.config().to_string();
        ln_tuning::pretrained::save(&vs, dir.join(case), &config).unwrap();
    }
    let mut arguments = vec![dir.to_str().unwrap(), "--saved"];
    arguments.extend(cases);
    common::run_python("gguf_bases.py", &arguments);
}

/// Blocks with their rows in order are the tensor; all numbers of a file have one kind in memory.
fn blocks_are_those_of_the_tensors(file: &Path) {
    let files = ModelFiles::open(file).unwrap();
    let in_file = files.gguf().unwrap().tensors().iter();
    let quantised = in_file.filter(|tensor| tensor.block_type.kind().is_none()).count();
    let variables = files.variables();
    let mut found = 0;
    for variable in &variables {
        let tensor = files.tensor(&variable.name).unwrap();
        assert_eq!((tensor.size(), variable.kind), (variable.shape.clone(), variables[0].kind));
        if let Some(blocks) = files.quantised(&variable.name).unwrap() {
            assert_eq!(blocks.dequantise(Kind::Float).unwrap(), tensor, "{file:?}: {variable:?}");
            found += 1;
        }
    }
    // The matrices of GPT-2 are transposed, but for the embedding.
    let expected = match file.file_stem().and_then(|name| name.to_str()) {
        Some("gpt2") => 1,
        // Three in memory of one in each of three blocks.
        Some("phi_fused") => quantised + 2 * 3,
        _ => quantised,
    };
    assert_eq!(found, expected, "{file:?}");
    let halves = [("llama_f16.gguf", Kind::Half), ("llama_linear.gguf", Kind::BFloat16)];
    let half = halves.iter().find(|(name, _)| file.ends_with(name)).map(|(_, kind)| *kind);
    if let Some(half) = half {
        let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
        assert!(vs.variables().values().all(|variable| variable.kind() == half));
    }
}

#[test]
fn the_logits_of_a_real_model_are_those_of_transformers() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.st");
    common::run_python("gguf_real.py", &[out.to_str().unwrap()]);
    let reference = tensors(&out);
    let (_vs, model) = Decoder::from_pretrained(common::smollm2(), Device::Cpu, None).unwrap();
    assert_eq!((model.model_type(), model.kind()), ("llama", Kind::Float));
    let logits = model.logits(&reference["input_ids"]).unwrap();
    let off = difference(&logits, &reference["logits"]);
    assert!(off <= 1e-4, "logits are {off} off");
    let last = logits.select(1, 15).argmax(-1, false).int64_value(&[0]);
    assert_eq!(last, reference["logits"].select(1, 15).argmax(-1, false).int64_value(&[0]));
}
