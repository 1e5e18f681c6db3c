//! `verify` says whether a model, with or without an adapter, computes what Python computes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use serde_json::Value;
use tch::Tensor;

use crate::common::{run_python, shared};
use crate::program::{output, printed, program, text, texts};

fn verify(case: &Path, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(["verify", "--model"]).arg(case);
    command.arg("--reference").arg(case.join("reference.st")).args(arguments).output().unwrap()
}

/// Models with adapters and references, a directory each, which the tests share.
fn cases() -> &'static Path {
    static CASES: OnceLock<PathBuf> = OnceLock::new();
    CASES.get_or_init(|| {
        let dir = shared("verify");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        run_python("verify.py", &[text(&dir)]);
        dir
    })
}

#[test]
fn adapters_of_peft_on_models_of_every_kind_are_told_from_the_bare_models() {
    let mut count = 0;
    for case in std::fs::read_dir(cases()).unwrap() {
        let case = case.unwrap().path();
        let adapter = case.join("adapter");
        let json = |arguments: &[&str]| -> (serde_json::Value, Option<i32>) {
            let output = verify(&case, &[&["--json"], arguments].concat());
            let error = String::from_utf8_lossy(&output.stderr);
            let report = serde_json::from_slice(&output.stdout);
            (report.unwrap_or_else(|_| panic!("{case:?}: {error}")), output.status.code())
        };
        let (tuned, status) = json(&["--adapter", adapter.to_str().unwrap()]);
        assert!(tuned["ok"] == true && status == Some(0), "{case:?}: {tuned}");
        assert_eq!(tuned["argmax_agreement"], 1., "{case:?}: {tuned}");
        let (bare, status) = json(&[]);
        assert!(bare["ok"] == false && status == Some(1), "{case:?}: {bare}");
        assert!(bare["max_abs_diff"].as_f64().unwrap() > 1e-3);
        if count == 0 {
            assert_eq!(json(&["--tolerance", "1000"]).1, Some(0));
        }
        count += 1;
    }
    assert_eq!(count, 7);

    let dir = tempfile::tempdir().unwrap();
    let case = dir.path();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(cases().join("vit").join(name), case.join(name)).unwrap();
    }
    std::fs::copy(cases().join("t5/reference.st"), case.join("reference.st")).unwrap();
    let words = |output: Output| {
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert_eq!(text.lines().count(), 1, "one line says why: {text}");
        text
    };
    let config = std::fs::read_to_string(case.join("config.json")).unwrap();
    std::fs::write(case.join("config.json"), config.replace("\"vit\"", "\"zebra\"")).unwrap();
    let unknown = words(verify(case, &[]));
    for known in ["zebra", "bart", "bert", "gpt2", "llama", "t5", "vit"] {
        assert!(unknown.contains(known), "{unknown}");
    }
    std::fs::write(case.join("config.json"), config).unwrap();
    let missing = words(verify(case, &[]));
    assert!(missing.contains("pixel_values") && missing.contains("input_ids"), "{missing}");
}

/// `verify` says whether a decoder computes what Python computes, by its exit status and its JSON.
#[test]
fn decoders_are_told_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["llama", "gemma2", "gpt2"];
    run_python("decoders.py", &[&[text(dir.path())], &names[..]].concat());
    for name in names {
        let case = dir.path().join(name);
        let file = case.join("verify.st");
        let reference: HashMap<String, Tensor> =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let run = |logits: &Tensor| {
            let (ids, mask) = (&reference["input_ids"], &reference["left.mask"]);
            let named = [("input_ids", ids), ("attention_mask", mask), ("logits", logits)];
            Tensor::write_safetensors(&named, &file).unwrap();
            let output =
                output(&["verify", "--json", "--model", text(&case), "--reference", text(&file)]);
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
            // Outputs of another shape cannot be compared.
            let short = logits.narrow(1, 0, 2).contiguous();
            let named = [("input_ids", &reference["input_ids"]), ("logits", &short)];
            Tensor::write_safetensors(&named, &file).unwrap();
            let output = output(&["verify", "--model", text(&case), "--reference", text(&file)]);
            let (_, words) = texts(&output);
            assert_eq!((output.status.code(), words.lines().count()), (Some(2), 1), "{words}");
            assert!(words.contains("the model's output has shape [3, 11, 64]"), "{words}");
        }
    }
}

/// The script that `verify --script` prints, for a model and adapter of each kind of input and head. Models err as PEFT
/// does in every kind; what is wrong errs more.
#[test]
fn training_in_every_kind_errs_as_that_of_peft_does() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("reference.py");
    std::fs::write(&script, printed(&["verify", "--script"])).unwrap();
    let reference = |case: &str, kind: &str| {
        let file = dir.path().join(format!("{case}.{kind}.st"));
        let case = cases().join(case);
        let adapter = case.join("adapter");
        let arguments = [text(&case), text(&file), "--adapter", text(&adapter), "--dtype", kind];
        run_python(text(&script), &[&arguments[..], &["--batch", "4", "--length", "20"]].concat());
        (case, file, adapter)
    };
    let compared = |(case, file, adapter): &(PathBuf, PathBuf, PathBuf), more: &[&str]| {
        let arguments = ["verify", "--model", text(case), "--reference", text(file)];
        let output = output(&[&arguments[..], &["--adapter", text(adapter)], more].concat());
        let (out, err) = texts(&output);
        (output.status.code(), out, err)
    };
    for (case, kind) in [
        ("llama", "float32"),
        ("llama", "bfloat16"),
        ("bert_base", "float16"),
        ("bert_classifier", "float16"),
        ("t5", "float32"),
        ("vit", "float16"),
    ] {
        let made = reference(case, kind);
        let (status, out, err) = compared(&made, &["--dtype", kind, "--json"]);
        assert_eq!(status, Some(0), "{case} in {kind}: {out}{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let compared_names: Vec<&str> = report["compared"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap())
            .collect();
        for group in ["loss", "gradients.", "weights."] {
            assert!(compared_names.iter().any(|name| name.starts_with(group)), "{case}: {report}");
        }
        if (case, kind) == ("llama", "float32") {
            let (status, out, _) = compared(&made, &[]);
            let has = |part: &str| out.lines().any(|line| line.starts_with(part));
            assert!(status == Some(0) && has("logits") && has("gradients") && has("ok"), "{out}");
            // A kind that rounds more is told from what PEFT computes in f32.
            let (status, out, _) = compared(&made, &["--kind", "f16"]);
            assert!(
                status == Some(1) && out.contains("gradients") && out.contains(", too much"),
                "{out}"
            );
            // The reference of another adapter.
            let other = cases().join("bert_base/adapter");
            let (status, _, err) = compared(&(made.0, made.1, other), &[]);
            assert!(status == Some(2) && err.lines().count() == 1, "{err}");
        }
    }
}

#[test]
fn the_model_and_the_reference_are_asked_for() {
    let (_, words) = texts(&output(&["verify"]));
    assert!(words.contains("--model") && words.contains("--reference"), "{words}");
    let (_, words) = texts(&output(&["verify", "--script", "--json"]));
    assert!(words.contains("cannot be used"), "{words}");
}
