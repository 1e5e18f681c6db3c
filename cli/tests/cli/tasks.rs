//! Tasks: adapters for several data sets, trained at once on one base.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use crate::training;

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn each_task_ends_bit_for_bit_as_it_would_alone_whatever_the_others_do() {
    let training = training().set(&["batch_size=3", "max_steps=4"]);
    training
        .write("gold.jsonl", &json!({"prompt": "all that ", "completion": "glitters"}).to_string());
    // Of another length, with other steps, and one that diverges.
    let tasks = json!([
        {"name": "words", "max_steps": 3, "seed": 4},
        {"name": "gold", "data": {"train": "gold.jsonl", "packing": false}, "optimizer": {"lr": 0.3}},
        {"name": "bad", "optimizer": {"lr": 1e30}, "schedule": {"warmup_ratio": 0.0}, "clip_norm": null},
    ]);
    let tasks = format!("tasks={tasks}");
    let output = training.command(&[&tasks]).arg("--exact").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("'bad' stopped behind step") && error.contains("the loss is"),
        "{error}"
    );
    let alone: HashMap<&str, &[&str]> = HashMap::from([
        ("words", &["max_steps=3", "seed=4"][..]),
        ("gold", &["data.train=gold.jsonl", "data.packing=false", "optimizer.lr=0.3"]),
    ]);
    for (name, set) in alone {
        let out = format!("out=alone-{name}");
        training.run(&[&[out.as_str()], set].concat());
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let ours = bytes(&training.path(&format!("out/{name}/adapter/{file}")));
            assert!(
                ours == bytes(&training.path(&format!("alone-{name}/adapter/{file}"))),
                "{name}"
            );
        }
        let losses = |out: &str| training.series(out, "loss");
        assert_eq!(losses(&format!("out/{name}")), losses(&format!("alone-{name}")));
    }
    assert!(!training.path("out/bad/adapter").exists());
    assert!(!training.path("out/adapter").exists(), "no task is the best");
}

#[test]
fn bad_tasks_are_refused_with_the_reason_and_the_cure() {
    let training = training();
    for (tasks, words) in [
        ("5", "'tasks' is 5, expected a list of settings, one for each task"),
        ("[]", "expected a list"),
        ("[poetry]", "in task 1: it is poetry, expected settings"),
        ("[{data: {train: a}}]", "in task 1: it has no 'name'"),
        ("[{name: a/b}]", "its name is 'a/b', expected letters"),
        ("[{name: a}, {name: A}]", "its name is 'A', and another one is 'a'"),
        ("[{name: a, model: b}]", "in task 'a': 'model' is of all tasks"),
        (
            "[{name: a, optimiser: {lr: 1}}]",
            "in task 'a': the key 'optimiser' is not known: is it 'optimizer'?",
        ),
        ("[{name: a, data: {train: none.txt}}]", "none.txt"),
    ] {
        let error = training.refusal(&[&format!("tasks={tasks}")]);
        assert!(error.contains(words), "{tasks}: {error}");
    }
    let output = training.command(&["tasks=[{name: a}]"]).args(["--sweep", "seed=1,2"]).output();
    let error = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(error.contains("--sweep is for a run without 'tasks'"), "{error}");
}
