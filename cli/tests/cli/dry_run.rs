//! `--dry-run` shows what would happen, and writes nothing.

use serde_json::{json, Value};

use crate::program::{texts, Training};
use crate::{classifier, training};

/// The output of a dry run that succeeds, and writes nothing.
fn shown(training: &Training, more: &[&str]) -> String {
    let before = std::fs::read_dir(training.dir.path()).unwrap().count();
    let output = training.command(&[]).arg("--dry-run").args(more).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!(std::fs::read_dir(training.dir.path()).unwrap().count(), before, "{out}");
    assert!(!training.path("out").exists());
    out
}

#[test]
fn a_completion_is_marked_and_its_prompt_is_not() {
    let settings = ["data.train=train.jsonl", "batch_size=1", "epochs=3"];
    let training = training().set(&settings);
    let lines =
        [json!({"prompt": "to be, or", "completion": " not to be"}), json!({"text": "gold"})];
    training.write("train.jsonl", &lines.map(|line| line.to_string()).join("\n"));
    let text = shown(&training, &[]);
    for part in [
        "trainable params: 160 ",
        "5 modules train",
        "2 documents",
        "the largest batch:",
        "MB at most in the process, measured with the largest batch",
        "3 steps, 1 in an epoch",
        "These 5 tensors train",
        "model.layers.1.input_layernorm.weight          [32]",
        "train.jsonl:1, with what is learned in [[ ]]:\n<s>to be, or[[ not to be</s>]]",
        "nothing was written",
    ] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }

    let report: Value = serde_json::from_str(&shown(&training, &["--json"])).unwrap();
    assert_eq!(report["trainable"], 160);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 5);
    assert_eq!(report["steps"], json!({"total": 3, "epoch": 1, "done": 0}));
    assert!(report["memory_bytes"]["measured"].as_u64().unwrap() > 1 << 20);
    let parts = json!([
        {"text": "<s>to be, or", "learned": false},
        {"text": " not to be</s>", "learned": true},
    ]);
    assert_eq!(report["example"], json!({"place": "train.jsonl:1", "parts": parts}));
}

#[test]
fn of_a_chat_the_replies_are_marked() {
    let training = training().set(&["data.train=train.jsonl"]);
    let message = |role: &str, text: &str| json!({"role": role, "content": text});
    let messages = [
        message("user", "is it gold?"),
        message("assistant", "it glitters"),
        message("user", "so?"),
        message("assistant", "no"),
    ];
    training.write("train.jsonl", &json!({"messages": messages}).to_string());
    let text = shown(&training, &[]);
    let marked = "<|user|>is it gold?</s><|assistant|>[[it glitters</s>]]<|user|>so?</s><|assistant|>[[no</s>]]";
    assert!(text.contains(marked), "{text}");
}

#[test]
fn a_row_is_shown_as_the_model_sees_it_with_its_label_marked() {
    let training = Training::new(&classifier::model("bert"));
    let training = training.set(&["data.train=train.csv", "data.pair=pair", "device=cpu"]);
    training.write("train.csv", "text,pair,label\nthe fox,the dog,old\na penny,gold,wise\n");
    let text = shown(&training, &[]);
    assert!(text.contains("train.csv:2, with what is learned"), "{text}");
    assert!(text.contains("[CLS] the fox [SEP] the dog [SEP] → [[old]]"), "{text}");
}

#[test]
fn colours_mark_what_is_learned_on_a_terminal() {
    let training = training().set(&["data.train=train.jsonl"]);
    training.write("train.jsonl", &json!({"prompt": "a ", "completion": "penny"}).to_string());
    let output =
        training.command(&[]).arg("--dry-run").env("CLICOLOR_FORCE", "1").output().unwrap();
    let text = texts(&output).0;
    assert!(text.contains("in green:\n<s>a\u{1b}[32m penny</s>\u{1b}[0m"), "{text}");
}

#[test]
fn it_says_where_the_run_would_resume() {
    let training = training().set(&["max_steps=3", "save_interval=1"]);
    training.run(&[]);
    // With less memory as well: that changes no result.
    let settings = ["max_steps=3", "checkpointing=all", "workers=2"];
    let output = training.command(&settings).arg("--dry-run").output().unwrap();
    assert!(texts(&output).0.contains("resuming after step 3 of 3"), "{:?}", texts(&output));
}

#[test]
fn keys_of_a_rope_that_change_nothing_are_reported_once() {
    let training = training().set(&["model=model"]);
    std::fs::create_dir(training.path("model")).unwrap();
    for file in std::fs::read_dir(crate::model("llama")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), training.path("model").join(file.file_name())).unwrap();
    }
    let mut config: Value = serde_json::from_str(&training.read("model/config.json")).unwrap();
    let yarn = json!({"type": "yarn", "factor": 2, "attn_factor": 0.8, "finetuned": true});
    config["rope_scaling"] = yarn;
    training.write("model/config.json", &config.to_string());
    let output = training.command(&[]).arg("--dry-run").output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}\n{err}");
    let words = "'rope_scaling' of rope_type 'yarn' has no use for attn_factor, finetuned: ignored";
    assert_eq!(err.matches(words).count(), 1, "{err}");
}
