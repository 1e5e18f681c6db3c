//! The check against PEFT does on the CPU what it does on a GPU, and finds what is wrong.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tch::Tensor;

/// A kind, and the kernels of attention.
const WAYS: [(&str, &str); 2] = [("float32", "math"), ("bfloat16", "flash")];

fn script(name: &str) -> String {
    common::root().join("gpu").join(name).to_str().unwrap().to_owned()
}

fn python(name: &str, args: &[&str]) -> String {
    common::run_python(&script(name), args)
}

/// The rows of a comparison, and whether it found everything right.
fn compared(models: &str, out: &Path) -> (Vec<Value>, bool) {
    let arguments = [models, "--out", out.to_str().unwrap()];
    let (status, said, _) = common::try_python(&script("compare.py"), &arguments);
    print!("{said}");
    let text = std::fs::read_to_string(out).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), status == 0)
}

/// The models that are not all right.
fn wrong(rows: &[Value]) -> Vec<&str> {
    let bad = rows.iter().filter(|row| row["ok"] != true);
    let mut names: Vec<&str> = bad.map(|row| row["model"].as_str().unwrap()).collect();
    names.dedup();
    names
}

#[test]
fn ours_errs_no_more_than_peft_and_a_wrong_or_missing_result_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let models_text = models.to_str().unwrap();
    let only = ["--only", "decoders:llama,bloom,olmo", "vit", "--shape", "small"];
    python("make_models.py", &[&[models_text], only.as_slice()].concat());
    python("theirs.py", &[models_text, "--reference"]);
    for (kind, attention) in WAYS {
        let how = ["--device", "cpu", "--kind", kind, "--attention", attention];
        python("theirs.py", &[&[models_text], how.as_slice()].concat());
        let mut ours = Command::new(env!("CARGO_BIN_EXE_gpu_check"));
        let status = ours.args(["check", models_text]).args(how).status().unwrap();
        assert!(status.success());
    }
    let out = dir.path().join("check.jsonl");
    let (rows, right) = compared(models_text, &out);
    assert!(right, "{:?}", wrong(&rows));
    let count = |key: &str, value: &str| rows.iter().filter(|row| row[key] == value).count();
    // Three decoders and the shape in four cases, three ViTs in one; OLMo has nothing to tune.
    let (cases, without, each) = (4 * 4 + 3, 4, WAYS.len());
    assert_eq!(count("quantity", "output"), cases * each);
    assert_eq!(count("quantity", "loss"), cases * each);
    assert_eq!(count("quantity", "gradients"), (cases - without) * each);
    assert_eq!(count("quantity", "weights"), 6 * each);
    assert!(rows.iter().all(|row| row["ours"].as_f64().unwrap() > 0. || row["quantity"] == "loss"));

    // One gradient of one model is a fifth too large.
    let spoilt = models.join("decoders-llama/ours.cpu.bfloat16.flash.safetensors");
    let mut tensors = Tensor::read_safetensors(&spoilt).unwrap();
    let name = "packed.grad.model.layers.1.input_layernorm.weight";
    let at = tensors.iter().position(|(key, _)| key == name).expect("the gradient");
    tensors[at].1 = &tensors[at].1 * 1.2;
    Tensor::write_safetensors(&tensors, &spoilt).unwrap();
    std::fs::remove_file(models.join("vit-relu/ours.cpu.float32.math.safetensors")).unwrap();
    std::fs::remove_file(models.join("decoders-bloom/theirs.cpu.float32.math.safetensors"))
        .unwrap();
    let (rows, right) = compared(models_text, &out);
    assert!(!right);
    assert_eq!(wrong(&rows), ["decoders-bloom", "decoders-llama", "vit-relu"]);
}
