//! Tasks: adapters for several data sets, trained at once on one base.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use crate::{classifier, training};

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
fn classifiers_learn_labels_of_their_own_if_they_are_as_many() {
    let training = classifier::training("bert").set(&["max_steps=4"]);
    let tables = [
        // The first has a head of its own in the base, the others a new one.
        ("old", ["old", "wise"], "seed=0"),
        ("foxes", ["10 foxes", "9 pennies"], "seed=0"),
        ("yes", ["no", "yes"], "seed=5"),
    ];
    for (name, labels, _) in tables {
        training.write(&format!("{name}.csv"), &classifier::csv(&classifier::rows(16), labels));
    }
    let task = |(name, _, seed): (&str, [&str; 2], &str)| {
        let seed: u64 = seed.trim_start_matches("seed=").parse().unwrap();
        json!({"name": name, "seed": seed, "data": {"train": format!("{name}.csv")}})
    };
    for order in [[0, 1, 2], [2, 0, 1]] {
        let out = format!("out-{}", order[0]);
        let tasks = json!(order.map(|at| task(tables[at])));
        training.run(&[&format!("tasks={tasks}"), &format!("out={out}")]);
        for (name, _, seed) in tables {
            let alone = format!("alone-{name}");
            if order[0] == 0 {
                let data = format!("data.train={name}.csv");
                training.run(&[&data, seed, &format!("out={alone}")]);
            }
            for file in ["adapter_model.safetensors", "adapter_config.json", "config.json"] {
                let ours = bytes(&training.path(&format!("{out}/{name}/adapter/{file}")));
                let theirs = bytes(&training.path(&format!("{alone}/adapter/{file}")));
                assert!(ours == theirs, "{order:?}, {name}: {file}");
            }
            let losses = |out: &str| training.series(out, "loss");
            assert_eq!(losses(&format!("{out}/{name}")), losses(&alone), "{order:?}, {name}");
        }
    }
    let mut three = classifier::rows(6);
    three[0].2 = "third";
    let three = three.iter().map(|(text, _, label)| format!("{text},{label}\n"));
    training.write("three.csv", &format!("text,label\n{}", three.collect::<String>()));
    training.write("words.txt", "a penny saved is a penny earned");
    classifier::images(&training);
    for (data, words) in [
        ("three.csv", "'b' has 3 labels (old, third, wise) and 'a' 2 (no, yes), and the heads on one base have one size: train them one by one"),
        ("images", "'b' is of pictures and 'a' of texts, and one base takes either: train them one by one"),
        ("words.txt", "b: 'words.txt' is a text, expected rows with labels"),
    ] {
        let tasks = json!([
            {"name": "a", "data": {"train": "yes.csv"}}, {"name": "b", "data": {"train": data}},
        ]);
        let error = training.refusal(&[&format!("tasks={tasks}"), "out=bad"]);
        assert!(error.contains(words), "{data}: {error}");
        assert!(!training.path("bad/a").exists());
    }
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
