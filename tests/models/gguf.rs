//! GGUF files are opened as the models that they are: what they compute is what transformers computes.

use std::collections::HashMap;
use std::path::Path;

use crate::{common, frozen};
use ln_tuning::models::{Decoder, Load, Model};
use tch::{Device, Kind, Tensor};

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b).abs().max().double_value(&[])
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
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
        let load = Load::on(Device::Cpu).kind(Kind::Float);
        let (_vs, model) = Decoder::from_pretrained_with(&file, &load)
            .unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let logits = model.logits(&reference["input_ids"]).unwrap();
        for (name, expected) in reference.iter().filter(|(name, _)| name.ends_with("logits")) {
            let off = difference(&logits, expected);
            assert!(off <= 1e-4, "{file:?}: logits are {off} off {name}");
            assert!(expected.abs().max().double_value(&[]) > 0.1);
        }
        kept += usize::from(frozen::check_blocks_of(&file, &reference["input_ids"]));
        cases += 1;
    }
    assert_eq!(cases, 34);
    assert!(kept >= 20, "only {kept} files have blocks");
}
