//! A checkpoint that was changed or damaged is refused with its place and what is wrong with it.

use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use tch::{Kind, Tensor};

use crate::training;

/// Replaces a tensor in a safetensors file.
fn change(file: &Path, key: &str, value: impl Fn(&Tensor) -> Tensor) {
    let mut tensors = Tensor::read_safetensors(file).unwrap();
    let (_, tensor) = tensors.iter_mut().find(|(name, _)| name.ends_with(key)).unwrap();
    *tensor = value(tensor);
    Tensor::write_safetensors(&tensors, file).unwrap();
}

/// A way to damage a checkpoint's directory, and words of the error.
type Damage = (&'static [&'static str], fn(&Path));

const DAMAGES: [Damage; 9] = [
    (&["state.json", "'step' is 7", "expected 2"], |dir| position(dir, "step", json!(7))),
    (&["state.json", "'epoch' is 18446744073709551615"], |dir| {
        position(dir, "epoch", json!(u64::MAX))
    }),
    (&["state.json", "'batch' is 1000000"], |dir| position(dir, "batch", json!(1_000_000))),
    (&["state.json"], |dir| position(dir, "batch", json!(-1))),
    (&["optimizer.safetensors"], |dir| {
        let file = dir.join("optimizer.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    }),
    (&[".step' is -1"], |dir| {
        change(&dir.join("optimizer.safetensors"), ".step", |_| Tensor::from(-1_i64));
    }),
    (&["exp_avg_sq", "negative"], |dir| {
        change(&dir.join("optimizer.safetensors"), ".exp_avg_sq", |t| t.zeros_like() - 1.);
    }),
    (&["exp_avg"], |dir| {
        change(&dir.join("optimizer.safetensors"), ".exp_avg", |t| t.zeros_like() / 0.);
    }),
    (&["adapter_model.safetensors"], |dir| {
        let nan = |t: &Tensor| (t.zeros_like() / 0.).to_kind(Kind::Float);
        change(&dir.join("adapter_model.safetensors"), "weight", nan);
    }),
];

fn position(dir: &Path, key: &str, value: Value) {
    let file = dir.join("state.json");
    let mut state: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    state[key] = value;
    fs::write(file, state.to_string()).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_refused_with_its_place_and_what_was_expected() {
    let training = training().set(&["max_steps=2"]);
    training.run(&[]);
    let dir = training.path("out/checkpoints/step-2");
    let whole: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let whole: Vec<_> = whole.into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    for (words, damage) in DAMAGES {
        damage(&dir);
        let error = training.refusal(&[]);
        for word in words.iter().chain(&["step-2"]) {
            assert!(error.contains(word), "{word}: {error}");
        }
        whole.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    }
    training.run(&[]);
}
