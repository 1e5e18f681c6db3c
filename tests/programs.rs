//! The examples that look at directories and write them, `plan`, `inspect`, `merge` and `verify`, run as users do.

mod common;
mod finetune;
mod trees;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ln_tuning::Norms;
use serde_json::{json, Value};
use tch::Tensor;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON that a successful run prints.
fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line that a failed run prints.
fn refusal(output: &Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert!(!output.status.success() && words.lines().count() == 1, "{words}");
    words
}

/// All files below a directory, and what they hold.
fn files(dir: &Path) -> HashMap<PathBuf, Vec<u8>> {
    let mut files = HashMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    files
}

/// `plan` prints what the library selects, which is compared with transformers and PEFT for every architecture.
#[test]
fn plans_are_the_norms_of_transformers_and_the_modules_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["llama", "qwen3", "gpt2", "falcon new", "t5", "bert", "vit", "clip"];
    let described = trees::describe(dir.path(), &names);
    let binary = finetune::binary("plan");
    let plan = |args: &[&str]| Command::new(&binary).args(args).output().unwrap();
    for row in &described.rows {
        let model = dir.path().join(&row.name);
        for (word, norms) in [("all", Norms::All), ("peft", Norms::Peft)] {
            let plan = report(&plan(&["--model", text(&model), "--norms", word, "--json"]));
            let modules: BTreeSet<String> =
                serde_json::from_value(plan["modules"].clone()).unwrap();
            assert_eq!(modules, row.expected(norms, &modules), "{} {word}", row.name);
            assert_eq!(plan["model_type"], row.model_type.as_str());
            if norms == Norms::All {
                assert_eq!(plan["trainable"], row.parameters(&modules), "{}", row.name);
            }
        }
    }
    assert_eq!(described.rows.len(), names.len());
    refusal(&plan(&["--model", text(&dir.path().join("nowhere"))]));
}

/// `merge` writes what the library's `merge` writes, which is compared with PEFT elsewhere, and says what it wrote.
#[test]
fn merging_writes_whole_directories() {
    let dir = tempfile::tempdir().unwrap();
    common::run_python("merge.py", &["make", text(dir.path())]);
    let program = finetune::binary("merge");
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let (base, adapter, out) = (case.join("base"), case.join("adapter"), case.join("merged"));
        let arguments =
            ["--base", text(&base), "--adapter", text(&adapter), "--out", text(&out), "--json"];
        let merge = || Command::new(&program).args(arguments).output().unwrap();
        let said = report(&merge());
        assert!(!said["merged"].as_array().unwrap().is_empty(), "{said}");
        assert_eq!(said["left_out"], json!(["pytorch_model.bin"]));
        let written = files(&out);
        assert_eq!(said["files"], written.len());
        std::fs::remove_dir_all(&out).unwrap();
        ln_tuning::pretrained::merge(&base, &adapter, &out, |_, _| ()).unwrap();
        assert!(files(&out) == written, "{case:?}");

        // A second time the place is taken, and nothing happens to it.
        let before = std::fs::metadata(out.join("config.json")).unwrap().modified().unwrap();
        let words = refusal(&merge());
        assert!(words.contains("not empty"), "{words}");
        assert_eq!(std::fs::metadata(out.join("config.json")).unwrap().modified().unwrap(), before);
        inspect(&base, &adapter, &case.join("map.svg"));
        cases += 1;
    }
    assert_eq!(cases, 4);
}

fn inspect(base: &Path, adapter: &Path, map: &Path) {
    let program = finetune::binary("inspect");
    let run = |arguments: &[&str]| Command::new(&program).args(arguments).output().unwrap();
    let report =
        report(&run(&[text(adapter), "--base", text(base), "--heatmap", text(map), "--json"]));
    assert_eq!(report["config"]["peft_type"], "LN_TUNING");
    let (tensors, moved) =
        (report["tensors"].as_array().unwrap(), report["moved"].as_array().unwrap());
    assert_eq!(tensors.len(), moved.len());
    assert!(moved.iter().all(|row| row["rms"].as_f64().unwrap() > 0.1), "{report:#}");
    assert!(std::fs::read_to_string(map).unwrap().contains("</svg>"));

    let output = run(&[text(adapter), "--base", text(base)]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && table.contains("largest"), "{table}");
    refusal(&run(&[text(&adapter.join("nowhere"))]));
}

/// `verify` says whether a decoder computes what Python computes, by its exit status and its JSON.
#[test]
fn decoders_are_told_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["llama", "gemma2", "gpt2"];
    common::run_python("decoders.py", &[&[text(dir.path())], &names[..]].concat());
    let program = finetune::binary("verify");
    for name in names {
        let case = dir.path().join(name);
        let file = case.join("verify.st");
        let reference: HashMap<String, Tensor> =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let run = |logits: &Tensor| {
            let (ids, mask) = (&reference["input_ids"], &reference["left.mask"]);
            let named = [("input_ids", ids), ("attention_mask", mask), ("logits", logits)];
            Tensor::write_safetensors(&named, &file).unwrap();
            let arguments = ["--json", "--model", text(&case), "--reference", text(&file)];
            let output = Command::new(&program).args(arguments).output().unwrap();
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["ok"], output.status.success(), "{report}");
            report
        };
        let logits = &reference["left.logits"];
        let same = run(logits);
        assert!(same["ok"] == true && same["argmax_agreement"] == 1., "{case:?}: {same}");
        if name == "llama" {
            let other = run(&(logits + 0.5));
            let off = other["max_abs_diff"].as_f64().unwrap();
            assert!(other["ok"] == false && off > 0.4, "{other}");
        }
    }
}
