//! Models stand inside another: the language model and the vision tower of a LLaVA, in one `VarStore`.

use std::collections::{BTreeSet, HashMap};

use crate::common;
use ln_tuning::models::{
    ClipVision, ClipVisionConfig, Decoder, DecoderConfig, Head, Inputs, Model, ModelConfig,
};
use ln_tuning::pretrained::ModelFiles;
use tch::{Device, Kind, Tensor};

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn a_decoder_and_a_vision_tower_stand_in_one_llava_and_compute_what_its_parts_compute() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    common::run_python("nesting.py", &[dir.path().to_str().unwrap()]);
    let reference: HashMap<String, Tensor> =
        Tensor::read_safetensors(dir.path().join("reference.st")).unwrap().into_iter().collect();
    let files = ModelFiles::open(dir.path()).unwrap();
    let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
    let before: BTreeSet<String> = vs.variables().into_keys().collect();
    let text = DecoderConfig::from_value(&files.config()["text_config"]).unwrap();
    let text = text.with_head(Head::None).unwrap();
    let vision = ClipVisionConfig::from_value(&files.config()["vision_config"]).unwrap();
    let inside = vs.root() / "model";
    let decoder = Decoder::new(&(&inside / "language_model"), &text).unwrap();
    let tower = ClipVision::new(&(&inside / "vision_tower"), &vision).unwrap();
    // Nothing was made anew.
    assert_eq!(vs.variables().into_keys().collect::<BTreeSet<_>>(), before);

    let words = decoder.hidden_states(&reference["ids"]).unwrap();
    let patches = tower.hidden_states(Inputs::images(&reference["images"])).unwrap();
    for (what, ours) in [("words", &words), ("patches", &patches)] {
        let expected = &reference[what];
        assert!(expected.abs().max().double_value(&[]) > 0.1);
        let off = difference(ours, expected);
        assert!(off <= 1e-4, "{what} are {off} off");
    }
    (words.square().mean(Kind::Float) + patches.square().mean(Kind::Float)).backward();
    let mut norms = 0;
    for (name, variable) in vs.variables() {
        let expected = reference.get(&format!("grad.{name}"));
        let gradient = variable.grad();
        assert_eq!(gradient.defined(), expected.is_some(), "{name}");
        if let Some(expected) = expected {
            let scale = expected.abs().max().double_value(&[]).max(0.1);
            let off = difference(&gradient, expected) / scale;
            assert!(off <= 1e-4, "the gradient of {name} is {off} off");
            norms += usize::from(name.contains("norm"));
        }
    }
    // Weights of two layers' norms and the last; weights and biases of three layers' norms and the first.
    assert_eq!(norms, 2 * 2 + 1 + 2 * (3 * 2 + 1));
}
