//! The files that merging carries and leaves out, and shards that their index does not describe.

use std::path::{Path, PathBuf};

use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::{merge, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::nets::{bits, Net};

/// A base and an adapter that was trained on it.
fn saved(dir: &Path) -> (PathBuf, PathBuf) {
    let (base, adapter) = (dir.join("base"), dir.join("adapter"));
    let net = Net::new(Kind::Float);
    pretrained::save(&net.vs, &base, r#"{"model_type": "mine"}"#).unwrap();
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    net.train(&tuned, 2);
    tuned.save_pretrained(&adapter).unwrap();
    (base, adapter)
}

fn add(dir: &Path, names: &[&str]) {
    for name in names {
        std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.join(name), name).unwrap();
    }
}

#[test]
fn weights_in_other_forms_are_left_out_and_named_and_the_rest_is_carried() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = saved(dir.path());
    let mut stale = [
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "rust_model.ot",
        "model.Q8_0.gguf",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "original/consolidated.00.pth",
        "adapter_config.json",
        "adapter_model.safetensors",
        "2_Dense/model.safetensors",
    ];
    let kept = [
        "tokenizer.json",
        "original/params.json",
        "1_Pooling/config.json",
        "3_Dense/pytorch_model.bin",
    ];
    add(&base, &stale);
    add(&base, &kept);
    add(&base, &["coreml/float32.mlpackage/Data/weights/weight.bin", ".git/lfs/objects/ab/cd"]);
    // Another save, which is gone in a moment.
    add(&base, &[".ln-tuning-a1B2c3.tmp/README.md"]);
    // A module with weights of its own, in the form of Sentence Transformers.
    let modules = json!([{"path": ""}, {"path": "1_Pooling"}, {"path": "3_Dense"}]);
    std::fs::write(base.join("modules.json"), modules.to_string()).unwrap();
    std::os::unix::fs::symlink("gone", base.join("flax_model.msgpack")).unwrap();

    let report = merge(&base, &adapter, dir.path().join("out"), |_, _| ()).unwrap();
    let mut left_out: Vec<&str> = report.left_out.iter().map(|p| p.to_str().unwrap()).collect();
    left_out.sort();
    let mut expected = stale.to_vec();
    expected.extend([".git", "coreml/float32.mlpackage", "flax_model.msgpack"]);
    expected.sort();
    stale.sort();
    assert_eq!(left_out, expected);
    for path in kept {
        assert_eq!(std::fs::read(dir.path().join("out").join(path)).unwrap(), path.as_bytes());
    }
    for path in stale.into_iter().chain([".ln-tuning-a1B2c3.tmp"]) {
        assert!(!dir.path().join("out").join(path).exists(), "{path}");
    }
    ModelFiles::open(dir.path().join("out")).unwrap();

    std::os::unix::fs::symlink(&base, base.join("loop")).unwrap();
    let error = merge(&base, &adapter, dir.path().join("again"), |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("link"), "{error}");
}

/// As transformers does: the index tells the files, and of two tensors of one name the last counts.
#[test]
fn tensors_are_those_of_the_shards_whatever_the_index_says_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let number = |value: f64| Tensor::from_slice(&[value as f32; 4]);
    let shard = |name: &str, tensors: &[(&str, Tensor)]| {
        let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(k, t)| (*k, t)).collect();
        Tensor::write_safetensors(&named, dir.path().join(name)).unwrap();
    };
    shard("a.safetensors", &[("norm.weight", number(1.)), ("twice.weight", number(2.))]);
    shard("b.safetensors", &[("twice.weight", number(3.)), ("unlisted.weight", number(4.))]);
    shard("c.safetensors", &[("never.weight", number(5.))]);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "mine"}"#).unwrap();
    let index = |map: serde_json::Value| {
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    };
    index(json!({"norm.weight": "b.safetensors", "twice.weight": "a.safetensors"}));
    let vs = ModelFiles::open(dir.path()).unwrap().var_store(Device::Cpu, None, |_| true).unwrap();
    let variables = vs.variables();
    assert_eq!(variables.len(), 3);
    for (name, value) in [("norm", 1.), ("twice", 3.), ("unlisted", 4.)] {
        assert_eq!(bits(&variables[&format!("{name}.weight")]), bits(&number(value)), "{name}");
    }
    index(json!({"norm.weight": "a.safetensors", "absent.weight": "b.safetensors"}));
    let error = ModelFiles::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptFile);
    assert!(error.to_string().contains("absent.weight"), "{error}");
}

#[test]
fn a_link_to_an_empty_directory_is_filled_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = saved(dir.path());
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    merge(&base, &adapter, &link, |_, _| ()).unwrap();
    assert!(link.is_symlink());
    ModelFiles::open(&real).unwrap();
}

#[test]
fn a_model_configuration_is_an_object_in_which_python_may_write_infinity() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = saved(dir.path());
    let out = dir.path().join("out");
    let write = |text: &str| std::fs::write(base.join("config.json"), text).unwrap();
    for text in ["null", "[]", "\"x\"", "1"] {
        write(text);
        let error = merge(&base, &adapter, &out, |_, _| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
        assert!(error.to_string().contains("config.json' is no JSON object"), "{error}");
    }
    let text = r#"{"model_type": "mine", "a \" NaN": "Infinity", "limit": [0.0, Infinity, -Infinity, NaN]}"#;
    write(text);
    merge(&base, &adapter, &out, |_, _| ()).unwrap();
    let config = ModelFiles::open(&out).unwrap().config().clone();
    assert_eq!(config["a \" NaN"], "Infinity");
    assert_eq!(config["limit"][2], json!({"__float__": "-Infinity"}));
    assert_eq!(std::fs::read_to_string(out.join("config.json")).unwrap(), text);
}
