//! Settings and data that cannot be trained with are refused before training starts.

use std::process::Command;

use crate::program::Training;
use crate::training;

fn refused(training: &Training, more: &[&str], parts: &[&str]) {
    let error = training.refusal(more);
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    assert!(!training.path("out/metrics.jsonl").exists(), "training has started");
}

#[test]
fn keys_that_are_not_known_are_refused_with_the_nearest_one() {
    let training = training();
    refused(&training, &["optimiser.lr=1"], &["'optimiser'", "is it 'optimizer'?"]);
    refused(&training, &["optimizer.learning=1"], &["'optimizer.learning'", "'optimizer."]);
    refused(&training, &["data.max_len=9"], &["'data.max_len'", "is it 'data.max_length'?"]);
    refused(&training, &["adapter.target_module=x"], &["is it 'adapter.target_modules'?"]);
    training.write("settings.yaml", "epoch: 3\n");
    refused(&training, &[], &["settings.yaml", "'epoch'", "is it 'epochs'?"]);
}

#[test]
fn values_out_of_range_are_refused_with_their_key() {
    let training = training();
    for (setting, part) in [
        ("batch_size=0", "'batch_size' is 0"),
        ("batch_size=-1", "'batch_size' is -1"),
        ("clip_norm=0", "'clip_norm' is 0"),
        ("schedule.warmup_ratio=2", "'schedule.warmup_ratio' is 2"),
        ("schedule.name=step", "'schedule.name' is step"),
        ("device=tpu", "'device' is 'tpu'"),
        ("kind=f8", "'kind' is f8"),
        ("data.packing=perhaps", "'data.packing' is perhaps"),
        ("checkpointing=some", "checkpointing"),
        ("data.max_length=1", "'data.max_length' is 1"),
        ("data.eval_fraction=1", "'data.eval_fraction' is 1"),
        ("optimizer.lr=-1", "learning rate"),
        ("data.train=null", "'data.train' is not set"),
        ("data.train=absent.txt", "absent.txt"),
        ("model=absent", "absent"),
        ("adapter.target_modules=[nothing]", "nothing"),
        ("batch_size", "key=value"),
    ] {
        refused(&training, &[setting], &[part]);
    }
}

#[test]
fn bad_lines_are_listed_with_file_and_number_or_skipped_and_counted() {
    let training = training().set(&["data.train=train.jsonl", "max_steps=2"]);
    let lines = [
        r#"{"text": "the quick brown fox"}"#,
        r#"{"text": "the lazy dog""#,
        r#"{"prompt": "a stitch"}"#,
        "",
        r#"{"text": 7}"#,
        r#"{"other": "x"}"#,
        r#"{"messages": [{"role": "user"}]}"#,
        r#"{"text": "to be, or not to be"}"#,
    ];
    training.write("train.jsonl", &lines.join("\n"));
    let parts = [
        "5 bad lines",
        "train.jsonl:2: this is not JSON",
        "train.jsonl:3: there is a 'prompt' and no 'completion'",
        "train.jsonl:5: 'text' is 7, expected a string",
        "train.jsonl:6:",
        "train.jsonl:7: a message has no 'content'",
        "set 'data.bad_lines' to skip",
    ];
    refused(&training, &[], &parts);
    let printed = training.run(&["data.bad_lines=skip"]);
    assert!(
        printed.contains("2 documents") && printed.contains("5 bad lines skipped"),
        "{printed}"
    );
}

#[test]
fn text_that_is_not_utf8_and_data_without_anything_are_refused() {
    let training = training();
    std::fs::write(training.path("train.txt"), b"good\n\nb\xffd\n").unwrap();
    refused(&training, &[], &["train.txt:3: this is not UTF-8"]);
    std::fs::write(training.path("train.txt"), b"\n \n").unwrap();
    refused(&training, &[], &["holds no document"]);
}

#[test]
fn a_selection_without_a_gradient_is_refused_before_the_first_step() {
    let training = training();
    // Behind a head of zeros nothing that the norms do matters.
    let (from, to) = (crate::model("llama"), training.path("dead"));
    std::fs::create_dir(&to).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut tensors = tch::Tensor::read_safetensors(from.join("model.safetensors")).unwrap();
    for (name, tensor) in &mut tensors {
        if name == "lm_head.weight" {
            *tensor = tensor.zeros_like();
        }
    }
    tch::Tensor::write_safetensors(&tensors, to.join("model.safetensors")).unwrap();
    let model = format!("model={}", to.display());
    let parts = ["5 selected tensors have no gradient", "layers.1.input_layernorm.weight (0)"];
    refused(&training, &[&model], &parts);
}

#[test]
fn the_sample_holds_every_setting_and_no_other() {
    let training = training();
    let sample = include_str!("../../src/language/sample.yaml");
    training.write("settings.yaml", sample);
    let show = |config: &str| {
        training.write("settings.yaml", config);
        let output = training.command(&[]).arg("--show").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        serde_yaml::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    // Read with the sample and without it: the same, so each value is the default's.
    let (with, without) = (show(sample), show("data: {train: train.jsonl}"));
    assert_eq!(with, without);
    // And the sample has each key of the settings.
    let sample: serde_json::Value = serde_yaml::from_str(sample).unwrap();
    same_keys(&sample, &with, "");
}

fn same_keys(sample: &serde_json::Value, all: &serde_json::Value, above: &str) {
    let (Some(sample), Some(all)) = (sample.as_object(), all.as_object()) else { return };
    for (key, value) in all {
        let named = sample.get(key).unwrap_or_else(|| panic!("the sample lacks '{above}{key}'"));
        same_keys(named, value, &format!("{above}{key}."));
    }
}

#[test]
fn pipes_and_text_without_bounds_are_refused_and_not_waited_for() {
    let made = training();
    let model = made.path("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(crate::model("llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    for (file, setting) in [
        ("train.jsonl", "data.train=train.jsonl"),
        ("model/config.json", "model=model"),
        ("model/tokenizer_config.json", "model=model"),
        ("model/tokenizer.json", "model=model"),
        ("settings.yaml", "model=model"),
    ] {
        let (path, before) = (made.path(file), std::fs::read(made.path(file)));
        let _ = std::fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused(&made, &[setting, "task=language"], &[file, "a pipe (FIFO)"]);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, before.unwrap_or_default()).unwrap();
    }
    for text in ["[".repeat(100_000), format!("a: &a [{}]", "*a, ".repeat(100_000))] {
        made.write("settings.yaml", &text);
        refused(&made, &[], &["settings.yaml"]);
    }
}
