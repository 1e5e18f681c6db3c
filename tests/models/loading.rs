//! Weights are used where they stand on disk, and what is written to them stays in this process.

use std::path::Path;
use std::process::Command;

use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::{LnTuningConfig, LnTuningModel};
use tch::nn::{Init, VarStore};
use tch::{no_grad, Device, Kind, Tensor};

/// A directory with `layers` tensors of `megabytes` each and as many norms.
fn checkpoint(dir: &Path, megabytes: i64, layers: i64) -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    for layer in 0..layers {
        let path = vs.root() / "layers" / layer;
        let _ = (&path / "big").var("weight", &[megabytes, 1 << 18], Init::Const(0.5));
        let _ = (&path / "norm").var("weight", &[64], Init::Const(1.));
    }
    pretrained::save(&vs, dir, "{}").unwrap();
    vs
}

/// Private memory of this process, and its highest total, in MB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let megabytes = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.
    };
    (megabytes("RssAnon"), megabytes("VmHWM"))
}

fn open(dir: &Path, kind: Option<Kind>) -> VarStore {
    ModelFiles::open(dir).unwrap().var_store(Device::Cpu, kind, |_| true).unwrap()
}

#[test]
fn what_is_written_to_a_mapped_variable_stays_in_this_variable_and_process() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 1, 2);
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let (vs, other) = (open(dir.path(), None), open(dir.path(), None));
    let variables = vs.variables();
    let value =
        |vs: &VarStore, name: &str| vs.variables()[name].mean(Kind::Float).double_value(&[]);
    no_grad(|| {
        let _ = variables["layers.0.big.weight"].shallow_clone().fill_(3.);
        let _ = variables["layers.0.norm.weight"].shallow_clone().f_add_scalar_(1.).unwrap();
    });
    assert_eq!(value(&vs, "layers.0.big.weight"), 3.);
    assert_eq!(value(&vs, "layers.0.norm.weight"), 2.);
    assert_eq!(value(&vs, "layers.1.big.weight"), 0.5);
    assert_eq!(value(&other, "layers.0.big.weight"), 0.5);
    assert_eq!(value(&open(dir.path(), None), "layers.0.big.weight"), 0.5);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    // Saving over the directory replaces the file and leaves what is loaded whole.
    pretrained::save(&vs, dir.path(), "{}").unwrap();
    assert_eq!(value(&other, "layers.0.big.weight"), 0.5);
    assert_eq!(value(&open(dir.path(), None), "layers.0.big.weight"), 3.);
    // Files of tch hold each variable once, and not the whole map with each.
    let size = |name: &str| {
        let path = dir.path().join(name);
        vs.save(&path).unwrap();
        std::fs::metadata(path).unwrap().len()
    };
    for name in ["saved.safetensors", "saved.ot"] {
        assert!(size(name) < 2 * (1 << 20) + 20_000, "{name}: {} bytes", size(name));
    }
}

#[test]
fn a_write_to_one_mapped_variable_does_not_disturb_the_graph_of_another() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 1, 2);
    let vs = open(dir.path(), None);
    let variables = vs.variables();
    let x = Tensor::ones([64], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let y = &x * &variables["layers.0.norm.weight"];
    no_grad(|| {
        let _ = variables["layers.1.norm.weight"].shallow_clone().fill_(7.);
    });
    y.sum(Kind::Float).f_backward().unwrap();
    assert_eq!(x.grad().sum(Kind::Float).double_value(&[]), 64.);
    // Adapters attach to and detach from mapped weights as to any others.
    let config = LnTuningConfig::default().target_modules(["norm"]);
    let before = variables["layers.0.norm.weight"].data_ptr();
    let tuned = LnTuningModel::new(&vs, config).unwrap();
    tuned.unload().unwrap();
    assert_eq!(vs.variables()["layers.0.norm.weight"].data_ptr(), before);
}

/// The child of the next test: loads, uses every weight, and says how much memory that took.
#[test]
fn loading_child() {
    let Some(dir) = std::env::var_os("LN_TUNING_LOAD") else { return };
    let kind = std::env::var_os("LN_TUNING_HALF").map(|_| Kind::BFloat16);
    let before = memory();
    let mut heard = Vec::new();
    let (send, receive) = std::sync::mpsc::channel();
    let files = ModelFiles::open(Path::new(&dir)).unwrap();
    let files = files.with_progress(move |done, total| send.send((done, total)).unwrap());
    let vs = files.var_store(Device::Cpu, kind, |_| true).unwrap();
    heard.extend(receive.try_iter());
    assert_eq!(heard.len(), vs.len());
    assert!(heard.last().is_some_and(|(done, total)| done == total), "{heard:?}");
    let loaded = memory();
    let sum: f64 = vs.variables().values().map(|v| v.sum(Kind::Float).double_value(&[])).sum();
    assert!(sum > 0.);
    println!("MB {} {}", loaded.0 - before.0, loaded.1 - before.1);
}

#[test]
fn weights_in_their_own_kind_take_no_memory_and_others_as_much_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    // 160 MB in f32.
    checkpoint(dir.path(), 4, 40);
    let child = |half: bool| -> (f64, f64) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "loading::loading_child", "--nocapture"])
            .env("LN_TUNING_LOAD", dir.path());
        if half {
            command.env("LN_TUNING_HALF", "1");
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.split_once("MB ")).map(|(_, rest)| rest);
        let mut numbers = line.unwrap_or_else(|| panic!("{text}")).split_whitespace();
        let mut next = || numbers.next().unwrap().parse().unwrap();
        (next(), next())
    };
    let (private, base) = child(false);
    println!("in place: {private:.1} MB private, peak {base:.1} MB");
    assert!(private < 8. && base < 16., "{private} MB private, peak {base} MB");
    let (private, peak) = child(true);
    println!("converted: {private:.1} MB private, peak {peak:.1} MB");
    assert!((78. ..92.).contains(&private), "{private} MB for 80 MB of weights");
    // Less what the program's own code takes.
    assert!(peak - base < 1.15 * 80., "peak {peak} MB for 80 MB of weights");
}

/// Saved in Python from what `torch.compile` or a data-parallel wrapper returned.
#[test]
fn models_saved_in_a_wrapper_are_refused_with_the_wrapper_and_missing_tensors_beside_what_there_is()
{
    let config = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2}"#;
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_json(config).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for (before, after, parts) in [
        ("", "_orig_mod.", ["'_orig_mod.", "`model._orig_mod.save_pretrained"]),
        ("", "module.", ["'module.", "`model.module.save_pretrained"]),
        ("model.norm", "model.gone", ["lacks 1 tensors", "1 others: 'model.gone.weight'"]),
    ] {
        let named: Vec<(String, Tensor)> = vs
            .variables()
            .into_iter()
            .map(|(name, tensor)| match name.strip_prefix(before) {
                Some(rest) => (format!("{after}{rest}"), tensor),
                None => (name, tensor),
            })
            .collect();
        Tensor::write_safetensors(&named, dir.path().join("model.safetensors")).unwrap();
        let error = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap_err();
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
}
