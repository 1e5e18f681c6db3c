//! The quickstart does what the README says, and Python reads what it wrote.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{common, nets};
use ln_tuning::models::{Model, ViTForImageClassification};
use ln_tuning::LnTuningModel;
use serde_json::Value;
use tch::{nn::VarStore, no_grad, Device, Kind, Tensor};

/// Runs the example as users do, into a directory, and gives its report.
fn quickstart(out: &Path, args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--locked", "--quiet", "--example", "quickstart", "--", "--cpu", "--out"])
        .arg(out)
        .args(args)
        // Two runs go beside each other: threads that wait must not keep the processors busy.
        .env("OMP_WAIT_POLICY", "passive")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for row in ["base on upright digits", "LN tuning", "head only", "full fine-tuning"] {
        assert!(text.contains(row), "{text}");
    }
    serde_json::from_str(&std::fs::read_to_string(out.join("report.json")).unwrap()).unwrap()
}

/// One whole run, which the tests below share.
fn whole() -> &'static (PathBuf, Value) {
    static RUN: OnceLock<(PathBuf, Value)> = OnceLock::new();
    RUN.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quickstart");
        let _ = std::fs::remove_dir_all(&out);
        // One thread takes two thirds of the time of two, and gives the same.
        let report = quickstart(&out, &["--threads", "1"]);
        (out, report)
    })
}

fn load(dir: &Path) -> (VarStore, ViTForImageClassification) {
    tch::set_num_threads(1);
    ViTForImageClassification::from_pretrained(dir, Device::Cpu, None).unwrap()
}

fn logits(model: &ViTForImageClassification, images: &Tensor) -> Tensor {
    no_grad(|| model.logits(images)).unwrap()
}

#[test]
fn the_model_adapts_to_the_new_domain() {
    let (out, report) = whole();
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("no '{key}'"));
    let after = number("target_accuracy_after");
    assert!(number("source_accuracy") >= 0.95, "{report:#}");
    assert!(number("target_accuracy_before") <= 0.2, "{report:#}");
    assert!(after >= 0.88, "{report:#}");
    assert!(after > report["head_only"]["accuracy"].as_f64().unwrap(), "{report:#}");
    assert_eq!(report["trainable"], 1152);
    assert!(number("trainable") <= 0.01 * number("total"), "{report:#}");
    assert!(number("seconds") > 0.);
    let picture = std::fs::read_to_string(out.join("curves.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
}

#[test]
fn a_seed_gives_the_same_run_twice_and_another_seed_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for (name, seed) in [("a", "7"), ("b", "7"), ("c", "8")] {
        let out = dir.path().join(name);
        let args = ["--base-epochs", "1", "--epochs", "1", "--seed", seed];
        let mut report = quickstart(&out, &args);
        // Times differ, nothing else.
        let fields = report.as_object_mut().unwrap();
        fields.remove("seconds");
        for run in ["base", "ln_tuning", "head_only", "full"] {
            fields[run].as_object_mut().unwrap().remove("seconds").unwrap();
        }
        let adapter = std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
        let base = std::fs::read(out.join("base/model.safetensors")).unwrap();
        runs.push((report, adapter, base));
    }
    assert!(runs[0] == runs[1]);
    assert!(runs[0].1 != runs[2].1);
}

#[test]
fn python_computes_with_its_adapter_what_we_compute_and_we_with_pythons() {
    let (out, _) = whole();
    let dir = tempfile::tempdir().unwrap();
    let images = Tensor::arange(8 * 64, (Kind::Float, Device::Cpu)).sin().view([8, 1, 8, 8]);
    let (vs, model) = load(&out.join("base"));
    let base = logits(&model, &images);
    let tuned = LnTuningModel::from_pretrained(&vs, out.join("adapter")).unwrap();
    let ours = logits(&model, &images);
    assert!((&base - &ours).abs().max().double_value(&[]) > 0.1, "the adapter changes the logits");
    let file = dir.path().join("ours.safetensors");
    Tensor::write_safetensors(&[("images", &images), ("base", &base), ("ours", &ours)], file)
        .unwrap();
    tuned.unload().unwrap();
    assert_eq!(nets::bits(&base), nets::bits(&logits(&model, &images)));

    let folder = dir.path().to_str().unwrap();
    common::run_python("quickstart.py", &["make", out.to_str().unwrap(), folder]);
    let tuned = LnTuningModel::from_pretrained(&vs, dir.path().join("peft")).unwrap();
    let from_python = logits(&model, &images);
    let made = Tensor::read_safetensors(dir.path().join("python.safetensors")).unwrap();
    assert_eq!(made[0].0, "logits");
    assert!((&made[0].1 - &ours).abs().max().double_value(&[]) > 0.1, "another adapter");
    let difference = (&made[0].1 - from_python).abs().max().double_value(&[]);
    assert!(difference <= 1e-5, "PEFT's adapter gives logits that are {difference} off");
    tuned.save_pretrained(dir.path().join("again")).unwrap();
    common::run_python("quickstart.py", &["again", out.to_str().unwrap(), folder]);
}

#[test]
fn transformers_image_processor_makes_the_pixels_of_training_and_gets_the_reports_accuracies() {
    let (out, _) = whole();
    let dir = tempfile::tempdir().unwrap();
    let (out, folder) = (out.to_str().unwrap(), dir.path().to_str().unwrap());
    common::run_python("quickstart.py", &["processor", out, folder]);
}
