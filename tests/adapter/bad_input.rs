//! Bad input gets an error of the right kind, and leaves variables, adapters and files as they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::nets::{named_bits, snapshot, Net};
use ln_tuning::{Error, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, SaveOptions};
use tch::{nn, Device, Kind, Tensor};
use ErrorKind::*;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const TENSORS: &str = "adapter_model.safetensors";
pub const CONFIG: &str = "adapter_config.json";

/// Every file below a directory, with its bytes; directories have none.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
            found.insert(path, None);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
    found
}

/// A message that helps: not empty, on one line, without Rust's debug output of an error.
pub fn check(case: &str, error: &Error, kind: ErrorKind) {
    assert_eq!(error.kind(), kind, "{case}: {error}");
    let text = error.to_string();
    assert!(text.len() > 20 && !text.contains("Error {"), "{case}: {text}");
}

#[test]
fn broken_configurations() {
    let cases = [
        ("no object", "[]", InvalidConfig),
        ("empty file", "", InvalidConfig),
        ("cut off", r#"{"peft_type": "LN_TUNING""#, InvalidConfig),
        ("text behind the object", r#"{"peft_type": "LN_TUNING"} x"#, InvalidConfig),
        ("no peft_type", "{}", InvalidConfig),
        ("peft_type null", r#"{"peft_type": null}"#, InvalidConfig),
        ("peft_type a number", r#"{"peft_type": 3}"#, InvalidConfig),
        ("another method", r#"{"peft_type": "LORA", "r": 8}"#, WrongPeftType),
        ("peft_type in lower case", r#"{"peft_type": "ln_tuning"}"#, WrongPeftType),
        ("bad task", r#"{"peft_type": "LN_TUNING", "task_type": "CHAT"}"#, InvalidConfig),
        ("task a list", r#"{"peft_type": "LN_TUNING", "task_type": ["CAUSAL_LM"]}"#, InvalidConfig),
        ("targets a number", r#"{"peft_type": "LN_TUNING", "target_modules": 3}"#, InvalidConfig),
        (
            "targets nested",
            r#"{"peft_type": "LN_TUNING", "target_modules": [["a"]]}"#,
            InvalidConfig,
        ),
        (
            "excludes an object",
            r#"{"peft_type": "LN_TUNING", "exclude_modules": {}}"#,
            InvalidConfig,
        ),
        ("saves a number", r#"{"peft_type": "LN_TUNING", "modules_to_save": [1]}"#, InvalidConfig),
        ("mode a word", r#"{"peft_type": "LN_TUNING", "inference_mode": "yes"}"#, InvalidConfig),
        ("revision a number", r#"{"peft_type": "LN_TUNING", "revision": 1}"#, InvalidConfig),
        ("mapping a list", r#"{"peft_type": "LN_TUNING", "auto_mapping": []}"#, InvalidConfig),
        ("key twice", r#"{"peft_type": "LN_TUNING", "peft_type": "LORA"}"#, DuplicateKey),
    ];
    for (case, text, kind) in cases {
        check(case, &LnTuningConfig::from_json(text).unwrap_err(), kind);
    }
    for (case, text, kind) in [
        ("yaml list", "- a", InvalidConfig),
        ("yaml tabs", "a:\n\t- b", InvalidConfig),
        ("yaml key twice", "revision: a\nrevision: b", DuplicateKey),
        ("yaml wrong type", "target_modules: 3", InvalidConfig),
    ] {
        check(case, &LnTuningConfig::from_yaml(text).unwrap_err(), kind);
    }
}

type Change = fn(&Path);

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), bytes).unwrap();
}

/// Rewrites the tensors, which are not the same to any two cases.
fn tensors(dir: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let path = dir.join(TENSORS);
    let mut tensors = Tensor::read_safetensors(&path).unwrap();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    change(&mut tensors);
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(k, t)| (k.as_str(), t)).collect();
    Tensor::write_safetensors(&named, path).unwrap();
}

/// A file of safetensors with this header and so many bytes of data.
fn raw(dir: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0u8; data]);
    write(dir, TENSORS, bytes);
}

fn cut(dir: &Path, keep: fn(usize) -> usize) {
    let bytes = std::fs::read(dir.join(TENSORS)).unwrap();
    write(dir, TENSORS, &bytes[..keep(bytes.len())]);
}

const BROKEN_DIRECTORIES: &[(&str, ErrorKind, Change)] = &[
    ("no directory", MissingFile, |dir| std::fs::remove_dir_all(dir).unwrap()),
    ("a file in its place", MissingFile, |dir| {
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::write(dir, "x").unwrap();
    }),
    ("no configuration", MissingFile, |dir| std::fs::remove_file(dir.join(CONFIG)).unwrap()),
    ("no tensors", MissingFile, |dir| std::fs::remove_file(dir.join(TENSORS)).unwrap()),
    ("a pickle alone", Unsupported, |dir| {
        std::fs::rename(dir.join(TENSORS), dir.join("adapter_model.bin")).unwrap();
    }),
    ("configuration not UTF-8", InvalidConfig, |dir| {
        write(dir, CONFIG, b"{\"peft_type\": \"\xff\"}")
    }),
    ("configuration of another method", WrongPeftType, |dir| {
        write(dir, CONFIG, r#"{"peft_type": "LORA"}"#)
    }),
    ("pattern does not compile", InvalidPattern, |dir| {
        write(dir, CONFIG, r#"{"peft_type": "LN_TUNING", "target_modules": "(norm"}"#)
    }),
    ("modules of another model", NoMatchingModules, |dir| {
        write(dir, CONFIG, r#"{"peft_type": "LN_TUNING", "target_modules": ["ln_1"]}"#)
    }),
    ("tensors empty", CorruptFile, |dir| write(dir, TENSORS, "")),
    ("tensors seven bytes", CorruptFile, |dir| cut(dir, |_| 7)),
    ("header cut off", CorruptFile, |dir| cut(dir, |_| 60)),
    ("data cut off", CorruptFile, |dir| cut(dir, |all| all - 1)),
    ("bytes behind the data", CorruptFile, |dir| {
        let mut bytes = std::fs::read(dir.join(TENSORS)).unwrap();
        bytes.push(0);
        write(dir, TENSORS, bytes);
    }),
    ("header longer than the file", CorruptFile, |dir| {
        write(dir, TENSORS, [&u64::MAX.to_le_bytes()[..], b"{}"].concat());
    }),
    ("header not JSON", CorruptFile, |dir| raw(dir, "{]", 0)),
    ("offsets beyond the data", CorruptFile, |dir| {
        raw(dir, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4)
    }),
    ("offsets that overlap", CorruptFile, |dir| {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
        raw(dir, header, 6)
    }),
    ("shape larger than its bytes", CorruptFile, |dir| {
        raw(dir, r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}"#, 4)
    }),
    ("shape that overflows", CorruptFile, |dir| {
        let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#;
        raw(dir, header, 4)
    }),
    ("key twice", DuplicateKey, |dir| {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        raw(dir, header, 4)
    }),
    ("size beyond any", CorruptFile, |dir| {
        let header =
            r#"{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}"#;
        raw(dir, header, 0)
    }),
    ("name of 200 kB", CorruptFile, |dir| {
        tensors(dir, |all| all.push(("a.".repeat(100_000), Tensor::ones([8], CPU))))
    }),
    ("kind unknown to libtorch", KindMismatch, |dir| {
        raw(dir, r#"{"a":{"dtype":"U16","shape":[1],"data_offsets":[0,2]}}"#, 2)
    }),
    ("pickle called safetensors", CorruptFile, |dir| {
        write(dir, TENSORS, b"PK\x03\x04archive/data.pkl")
    }),
    ("tensor missing", MissingKeys, |dir| tensors(dir, |all| drop(all.remove(1)))),
    ("tensor of no module", UnexpectedKeys, |dir| {
        tensors(dir, |all| {
            all.push(("base_model.model.x.ln_tuning_layers.weight".into(), Tensor::ones([8], CPU)))
        })
    }),
    ("tensor twice, with and without prefix", DuplicateKey, |dir| {
        tensors(dir, |all| {
            let (key, tensor) = &all[0];
            all.push((key.replace("base_model.model.", ""), tensor.copy()));
        })
    }),
    ("shape too long", ShapeMismatch, |dir| tensors(dir, |all| all[0].1 = Tensor::ones([9], CPU))),
    ("shape transposed", ShapeMismatch, |dir| {
        tensors(dir, |all| all[0].1 = Tensor::ones([8, 1], CPU))
    }),
    ("scalar", ShapeMismatch, |dir| tensors(dir, |all| all[0].1 = Tensor::from(1f32))),
    ("integers", KindMismatch, |dir| {
        tensors(dir, |all| all[0].1 = Tensor::ones([8], (Kind::Int64, Device::Cpu)))
    }),
    ("NaN", NonFinite, |dir| tensors(dir, |all| drop(all[2].1.get(0).fill_(f64::NAN)))),
    ("infinity", NonFinite, |dir| tensors(dir, |all| drop(all[2].1.get(0).fill_(f64::INFINITY)))),
];

#[test]
fn broken_directories() {
    assert!(BROKEN_DIRECTORIES.len() >= 30);
    for (case, kind, change) in BROKEN_DIRECTORIES {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("adapter");
        let net = Net::new(Kind::Float);
        let tuned = LnTuningModel::new(
            &net.vs,
            LnTuningConfig::default().target_modules(["norm1", "norm2"]),
        )
        .unwrap();
        net.train(&tuned, 2);
        tuned.save_pretrained(&dir).unwrap();
        tuned.unload().unwrap();
        change(&dir);
        let on_disk = files(outer.path());

        // Into a bare VarStore.
        let before = (snapshot(&net.vs), net.flags());
        check(case, &LnTuningModel::from_pretrained(&net.vs, &dir).unwrap_err(), *kind);
        assert_eq!((snapshot(&net.vs), net.flags()), before, "{case}");

        // Beside an adapter that is in use.
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        net.train(&tuned, 1);
        let before =
            (snapshot(&net.vs), net.flags(), named_bits(&tuned.state_dict("default").unwrap()));
        let error = tuned.load_adapter(&dir, "second", &LoadOptions::default()).unwrap_err();
        check(case, &error, *kind);
        let after =
            (snapshot(&net.vs), net.flags(), named_bits(&tuned.state_dict("default").unwrap()));
        assert_eq!(after, before, "{case}");
        assert_eq!(tuned.adapters(), ["default"], "{case}");
        assert_eq!(files(outer.path()), on_disk, "{case}");
    }
}

pub fn attach(vs: &nn::VarStore, config: LnTuningConfig) -> Result<LnTuningModel, Error> {
    LnTuningModel::new(vs, config)
}

#[test]
fn broken_var_stores() {
    type Build = fn(&nn::Path);
    let named = |name: &str| LnTuningConfig::default().target_modules([name]);
    let cases: Vec<(&str, ErrorKind, LnTuningConfig, Build)> = vec![
        ("empty", EmptyVarStore, LnTuningConfig::default(), |_| {}),
        ("no norms", NoTargetModules, LnTuningConfig::default(), |root| {
            let _ = nn::linear(root / "up", 4, 4, Default::default());
        }),
        ("a norm without parameters", NoTargetModules, LnTuningConfig::default(), |root| {
            let plain = nn::LayerNormConfig { elementwise_affine: false, ..Default::default() };
            let _ = nn::layer_norm(root / "norm", vec![4], plain);
            let _ = nn::linear(root / "up", 4, 4, Default::default());
        }),
        ("a norm without parameters by name", NoMatchingModules, named("norm"), |root| {
            let plain = nn::LayerNormConfig { elementwise_affine: false, ..Default::default() };
            let _ = nn::layer_norm(root / "norm", vec![4], plain);
            let _ = nn::linear(root / "up", 4, 4, Default::default());
        }),
        ("integers in the norm", UnsupportedVariable, named("norm"), |root| {
            let _ =
                (root / "norm").add("weight", Tensor::ones([4], (Kind::Int64, Device::Cpu)), false);
        }),
        ("a tensor without elements", UnsupportedVariable, named("norm"), |root| {
            let _ = (root / "norm").var("weight", &[0], nn::Init::Const(1.));
        }),
        ("tied to a tensor that is not selected", TiedTensors, named("norm"), |root| {
            let weight = (root / "norm").var("weight", &[4], nn::Init::Const(1.));
            let _ = (root / "other").add("weight", weight, true);
        }),
        ("a sparse tensor", UnsupportedVariable, named("norm"), |root| {
            let sparse = Tensor::ones([4, 4], CPU).to_sparse(None, None::<&[i64]>, 0);
            let _ = (root / "norm").add("weight", sparse, false);
        }),
        ("complex numbers", UnsupportedVariable, named("norm"), |root| {
            let _ = (root / "norm").add(
                "weight",
                Tensor::ones([4], (Kind::ComplexFloat, Device::Cpu)),
                false,
            );
        }),
    ];
    for (case, kind, config, build) in cases {
        let vs = nn::VarStore::new(Device::Cpu);
        build(&vs.root());
        let state = || -> BTreeMap<String, (bool, Kind, Vec<i64>, String)> {
            let text =
                |t: &Tensor| if t.is_sparse() { "sparse".into() } else { t.to_string(80).unwrap() };
            let all = vs.variables().into_iter();
            all.map(|(n, t)| (n, (t.requires_grad(), t.kind(), t.size(), text(&t)))).collect()
        };
        let before = state();
        check(case, &attach(&vs, config).unwrap_err(), kind);
        assert_eq!(state(), before, "{case}");
    }
}

#[test]
fn integer_buffers_beside_the_norms_do_no_harm() {
    let vs = nn::VarStore::new(Device::Cpu);
    let _ = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    let ids = Tensor::arange(4, (Kind::Int64, Device::Cpu));
    let _ = vs.root().add("position_ids", ids, false);
    let tuned = attach(&vs, LnTuningConfig::default()).unwrap();
    assert_eq!(tuned.trainable_parameters().trainable, 8);
    tuned.unload().unwrap();
    assert_eq!(vs.variables()["position_ids"].kind(), Kind::Int64);
}

#[test]
fn adapter_names_that_cannot_be_a_folder_or_a_key() {
    let net = Net::new(Kind::Float);
    let before = (snapshot(&net.vs), net.flags());
    let long = "x".repeat(300);
    for name in ["", "  ", ".", "..", "a.b", "a/b", "../a", "/", "a\\b", "a\nb", "a\0b", &long] {
        let error =
            LnTuningModel::with_adapter_name(&net.vs, LnTuningConfig::default(), name).unwrap_err();
        check(name, &error, InvalidAdapterName);
        assert_eq!((snapshot(&net.vs), net.flags()), before, "{name:?}");
    }
    let mut tuned = attach(&net.vs, LnTuningConfig::default()).unwrap();
    let state = named_bits(&tuned.state_dict("default").unwrap());
    let error = tuned.add_adapter("a.b", LnTuningConfig::default()).unwrap_err();
    check("a.b", &error, InvalidAdapterName);
    let error = tuned.add_adapter("default", LnTuningConfig::default()).unwrap_err();
    check("default", &error, DuplicateAdapter);
    for error in [
        tuned.set_adapter("nope").unwrap_err(),
        tuned.delete_adapter("nope").unwrap_err(),
        tuned.merge_adapter("nope").unwrap_err(),
        tuned.set_requires_grad("nope", true).unwrap_err(),
        tuned.state_dict("nope").unwrap_err(),
        tuned
            .save_pretrained_with("never", &SaveOptions::default().selected_adapters(["nope"]))
            .unwrap_err(),
    ] {
        check("nope", &error, UnknownAdapter);
        assert!(error.to_string().contains("default"), "{error} lists what there is");
    }
    assert_eq!(named_bits(&tuned.state_dict("default").unwrap()), state);
    assert!(!Path::new("never").exists());
}
