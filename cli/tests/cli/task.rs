//! The task follows from the model and the data, or is said.

use std::path::Path;

use serde_json::{json, Value};

use crate::classifier;
use crate::model;
use crate::program::{output, texts, Training};

const ROWS: [(&str, &str); 8] = [
    ("table.csv", "text,label\nthe fox,old\na penny,wise\n"),
    ("rows.jsonl", "{\"text\": \"the fox\", \"label\": \"old\"}\n{\"text\": \"a penny\", \"label\": \"wise\"}\n"),
    ("named.jsonl", "{\"text\": \"the fox\", \"mood\": \"old\"}\n"),
    ("texts.jsonl", "{\"text\": \"the fox\"}\n"),
    ("prompts.jsonl", "{\"prompt\": \"the \", \"completion\": \"fox\"}\n"),
    ("chats.jsonl", "\n{\"messages\": []}\n"),
    ("text.txt", "the fox\n\na penny\n"),
    ("classes/old/nothing.png", ""),
];

/// The `task` of the settings that would be used, or the error.
fn task(model: &Path, data: &str, more: &[&str]) -> Result<String, String> {
    let training = Training::new(model).set(&[&format!("data.train={data}")]).set(more);
    for (name, text) in ROWS {
        std::fs::create_dir_all(training.path(name).parent().unwrap()).unwrap();
        training.write(name, text);
    }
    let output = training.command(&[]).arg("--show").output().unwrap();
    let (out, err) = texts(&output);
    if !output.status.success() {
        return Err(err);
    }
    let shown: Value = serde_yaml::from_str(&out).unwrap();
    Ok(shown["task"].as_str().unwrap().to_owned())
}

#[test]
fn the_model_and_the_data_say_it() {
    let absent = Path::new("absent");
    let (llama, bert, vit) = (model("llama"), classifier::model("bert"), classifier::model("vit"));
    for (model, data, expected) in [
        (&*llama, "text.txt", "language"),
        (&*llama, "texts.jsonl", "language"),
        (&*llama, "chats.jsonl", "language"),
        (&*llama, "absent.jsonl", "language"),
        (&*bert, "table.csv", "classifier"),
        (&*bert, "rows.jsonl", "classifier"),
        (&*bert, "texts.jsonl", "classifier"),
        (&*vit, "classes", "classifier"),
        (absent, "table.csv", "classifier"),
        (absent, "classes", "classifier"),
        (absent, "prompts.jsonl", "language"),
    ] {
        assert_eq!(task(model, data, &[]).as_deref(), Ok(expected), "{model:?} {data}");
    }
    // The label's column by its name, and the format as it is set.
    assert_eq!(task(absent, "named.jsonl", &["data.label=mood"]).as_deref(), Ok("classifier"));
    assert_eq!(task(absent, "text.txt", &["data.format=csv"]).as_deref(), Ok("classifier"));
}

#[test]
fn what_is_not_clear_is_an_error_that_names_the_setting() {
    let (llama, bert) = (model("llama"), classifier::model("bert"));
    for (model, data, parts) in [
        (&*llama, "rows.jsonl", ["is a language model (llama)", "has rows with a label"]),
        (&*llama, "classes", ["is a language model (llama)", "is a folder of classes"]),
        (&*bert, "text.txt", ["is a classifier (bert)", "is a text"]),
        (Path::new("absent"), "texts.jsonl", ["neither the model nor the data", "'task'"]),
    ] {
        let error = task(model, data, &[]).unwrap_err();
        for part in parts.iter().chain(&["set 'task' to language or classifier"]) {
            assert!(error.to_lowercase().contains(&part.to_lowercase()), "{part}: {error}");
        }
    }
    // It is said.
    assert_eq!(task(&llama, "rows.jsonl", &["task=language"]).as_deref(), Ok("language"));
    for name in ["image-classification", "text-classification"] {
        let (fits, other) = if name.starts_with("image") {
            ("classes", "table.csv")
        } else {
            ("table.csv", "classes")
        };
        let task = |data: &str| task(&bert, data, &[&format!("task={name}")]);
        assert_eq!(task(fits).as_deref(), Ok(name));
        let error = task(other).unwrap_err();
        assert!(error.contains(&format!("'task' is {name}, and")), "{error}");
    }
    let error = task(&llama, "text.txt", &["task=regression"]).unwrap_err();
    assert!(error.contains("'task' is regression") && error.contains("`classifier`"), "{error}");
}

#[test]
fn a_run_needs_no_file_of_settings() {
    let training = Training::new(&model("llama"));
    training.write("train.jsonl", &json!({"text": "the quick brown fox"}).to_string());
    let out = training.path("out");
    let settings = [
        format!("model={}", model("llama").display()),
        format!("data.train={}", training.path("train.jsonl").display()),
        format!("out={}", out.display()),
        "max_steps=2".into(),
        "device=cpu".into(),
    ];
    let mut arguments = vec!["train"];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let output = output(&arguments);
    assert!(output.status.success(), "{:?}", texts(&output));
    assert!(out.join("adapter/adapter_model.safetensors").exists());
}

#[test]
fn samples_are_printed_and_can_be_used() {
    for (name, data) in [("language", "train.jsonl"), ("classifier", "train.csv")] {
        let output = output(&["train", "--sample", name]);
        let sample: Value = serde_yaml::from_slice(&output.stdout).unwrap();
        assert_eq!((&sample["task"], &sample["data"]["train"]), (&json!(name), &json!(data)));
    }
}
