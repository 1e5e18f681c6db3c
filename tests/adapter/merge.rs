//! Merging into a model directory: what PEFT's merge gives, bit for bit.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{common, nets};
use ln_tuning::{merge, merge_with, pretrained::ModelFiles, MergeOptions};
use ln_tuning::{Error, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions};
use tch::{Device, Tensor};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn refusal(result: ln_tuning::Result<ln_tuning::MergeReport>) -> Error {
    result.expect_err("refused")
}

#[test]
fn merging_gives_what_peft_gives_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let root = text(dir.path());
    common::run_python("merge.py", &["make", root]);
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert_eq!(cases.len(), 4);
    for case in &cases {
        let (base, adapter, out) = (case.join("base"), case.join("adapter"), case.join("merged"));
        let report = merge(&base, &adapter, &out, |_, _| ()).unwrap();
        assert!(!report.merged.is_empty(), "{report:?}");
        // Everything is carried over, but for weights that are not merged.
        assert_eq!(report.left_out, [Path::new("pytorch_model.bin")]);
        let mut expected = names(&base);
        expected.retain(|name| name != "pytorch_model.bin");
        assert_eq!(names(&out), expected);
        assert_eq!(std::fs::read(out.join("nested/notes.txt")).unwrap(), b"keep me");
        assert_eq!(
            std::fs::read(out.join("config.json")).unwrap(),
            std::fs::read(base.join("config.json")).unwrap()
        );

        // The same weights as with the adapter attached to the base, without model code.
        let files = ModelFiles::open(&base).unwrap();
        let vs = files.var_store(Device::Cpu, None, |_| true).unwrap();
        assert_eq!(vs.len(), files.variables().len());
        let options = ln_tuning::AdapterOptions::default().model_type(files.model_type().unwrap());
        let options = LoadOptions::default().adapter(options);
        let (tuned, report) =
            LnTuningModel::from_pretrained_with(&vs, &adapter, "default", &options).unwrap();
        assert_eq!(report, Default::default());
        tuned.merge_and_unload().unwrap();
        let merged = ModelFiles::open(&out).unwrap();
        for (name, tensor) in vs.variables() {
            assert_eq!(nets::bits(&tensor), nets::bits(&merged.tensor(&name).unwrap()), "{name}");
        }

        // A second time the place is taken, and nothing happens to it.
        let before = std::fs::metadata(out.join("config.json")).unwrap().modified().unwrap();
        let error = refusal(merge(&base, &adapter, &out, |_, _| ()));
        assert!(error.to_string().contains("not empty"), "{error}");
        assert_eq!(std::fs::metadata(out.join("config.json")).unwrap().modified().unwrap(), before);
    }
    for case in &cases {
        for scale in [0., 0.7, -0.5] {
            let (base, adapter) = (case.join("base"), case.join("adapter"));
            let options = MergeOptions::default().scale(scale);
            let out = case.join(format!("scaled_{scale}"));
            let report = merge_with(&base, &adapter, &out, &options, |_, _| ()).unwrap();
            assert!(report.unscaled.is_empty() && !report.merged.is_empty(), "{report:?}");
            if scale == 0. {
                let (ours, base) =
                    (ModelFiles::open(&out).unwrap(), ModelFiles::open(&base).unwrap());
                for variable in base.variables() {
                    let [ours, base] =
                        [&ours, &base].map(|files| files.tensor(&variable.name).unwrap());
                    assert_eq!(nets::bits(&ours), nets::bits(&base), "{case:?} {}", variable.name);
                }
            }
        }
    }
    let checked = common::run_python("merge.py", &["check", root]);
    assert_eq!(checked.lines().filter(|line| line.ends_with(" ok")).count(), 4, "{checked}");
    refusals(&cases[0], dir.path());
}

/// An adapter that cannot be merged is refused as a whole.
fn refusals(case: &Path, dir: &Path) {
    let (base, adapter, out) = (case.join("base"), case.join("adapter"), dir.join("out"));
    let silent = |_: u64, _: u64| {};
    let kinds = [
        refusal(merge(dir.join("nowhere"), &adapter, &out, silent)),
        refusal(merge(&base, dir.join("nowhere"), &out, silent)),
        refusal(merge(&base, &adapter, base.join("inside"), silent)),
        refusal(merge_with(
            &base,
            &adapter,
            &out,
            &MergeOptions::default().scale(f64::NAN),
            silent,
        )),
        refusal(merge(&base, &adapter, base.join("config.json"), silent)),
        // An adapter for another architecture.
        refusal(merge(&base, dir.join("llama_bf16_shards/adapter"), &out, silent)),
    ]
    .map(|error| error.kind());
    use ErrorKind::*;
    assert_eq!(
        kinds,
        [MissingFile, MissingFile, InvalidArgument, InvalidArgument, Io, NoMatchingModules]
    );

    // Shards: one that is missing, one that is cut off, an index that is not theirs.
    let sharded = dir.join("llama_bf16_shards");
    let (base, adapter) = (sharded.join("base"), sharded.join("adapter"));
    let index = base.join("model.safetensors.index.json");
    let shard = base.join(names(&base).into_iter().rfind(|n| n.ends_with(".safetensors")).unwrap());
    let (whole, listed) =
        (std::fs::read(&shard).unwrap(), std::fs::read_to_string(&index).unwrap());
    let refused = || refusal(merge(&base, &adapter, &out, silent)).kind();
    std::fs::remove_file(&shard).unwrap();
    assert_eq!(refused(), MissingFile);
    std::fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(refused(), CorruptFile);
    std::fs::write(&shard, &whole).unwrap();
    for changed in
        [listed.replace("model.norm.weight", "model.gone.weight"), "{}".into(), "[".into()]
    {
        std::fs::write(&index, changed).unwrap();
        assert!(matches!(refused(), CorruptFile | InvalidConfig));
    }
    std::fs::remove_file(&index).unwrap();
    assert_eq!(refused(), Unsupported, "the pickle is all that is left");
    assert!(!out.exists());
    assert!(names(dir).iter().all(|name| !name.contains("tmp")), "{:?}", names(dir));
}

/// The child of the next test: merges, and says how much memory of its own it took.
#[test]
fn merging_streams_child() {
    let Some(dir) = std::env::var_os("LN_TUNING_MERGE") else { return };
    let dir = Path::new(&dir);
    merge(dir.join("base"), dir.join("adapter"), dir.join("out"), |_, _| ()).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    println!("{peak}");
}

#[test]
fn merging_takes_memory_for_a_tensor_and_not_for_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let base = |megabytes: i64, layers: i64| {
        let vs = tch::nn::VarStore::new(Device::Cpu);
        let size = [megabytes, 1 << 18];
        let _ = (vs.root() / "embed").var("weight", &size, tch::nn::Init::Const(0.5));
        for layer in 0..layers {
            let path = vs.root() / "layers" / layer;
            let _ = (&path / "big").var("weight", &size, tch::nn::Init::Const(0.5));
            let _ = (&path / "norm").var("weight", &[64], tch::nn::Init::Const(1.));
        }
        vs
    };
    let peak = |megabytes: i64, layers: i64| -> f64 {
        let folder = dir.path().join(format!("{megabytes}-{layers}"));
        let vs = base(megabytes, layers);
        ln_tuning::pretrained::save(&vs, folder.join("base"), "{}").unwrap();
        // The largest tensor is among the tuned ones.
        let config = LnTuningConfig::default().target_modules(["norm", "embed"]);
        let tuned = LnTuningModel::new(&vs, config).unwrap();
        tuned.save_pretrained(folder.join("adapter")).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "merge::merging_streams_child", "--nocapture"])
            .env("LN_TUNING_MERGE", &folder)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line =
            text.lines().find(|line| line.contains("VmHWM")).unwrap_or_else(|| panic!("{text}"));
        assert!(folder.join("out/model.safetensors").exists());
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<f64>().unwrap() / 1024.
    };
    let (small, large) = (peak(1, 2), peak(16, 12));
    // 3 MB against 208 MB of weights, 1 MB against 16 MB for the largest tensor.
    println!("{small:.1} MB, {large:.1} MB");
    assert!(large - small < 2. * 16. + 4., "{small} MB, {large} MB");
}

#[test]
fn names_of_a_model_directory_are_those_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = Tensor::ones([4], (tch::Kind::Float, Device::Cpu));
    let named = [
        ("vit.encoder.layer.0.layernorm_before.weight", &tensor),
        ("vit.encoder.layer.0.attention.attention.query.weight", &tensor),
        ("embeddings.LayerNorm.gamma", &tensor),
    ];
    Tensor::write_safetensors(&named, dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "vit"}"#).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    let names: Vec<String> = files.variables().into_iter().map(|variable| variable.name).collect();
    assert_eq!(
        names,
        [
            "embeddings.LayerNorm.weight",
            "vit.layers.0.attention.q_proj.weight",
            "vit.layers.0.layernorm_before.weight"
        ]
    );
    assert_eq!(files.tensor("nope").unwrap_err().kind(), ErrorKind::MissingKeys);
}
