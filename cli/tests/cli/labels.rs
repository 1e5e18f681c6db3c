//! Labels of classifiers: by name, by number, and numbers to be learned.

use crate::classifier::model;
use crate::common::run_python;
use crate::program::Training;
use serde_json::{json, Value};

const TEXTS: [&str; 6] = [
    "the quick brown fox",
    "jumps over the lazy dog",
    "a penny saved is a penny earned",
    "that is the question",
    "the lazy dog jumps",
    "a stitch in time",
];

fn training(name: &str) -> Training {
    let settings = ["batch_size=3", "optimizer.lr=0.02", "threads=1", "workers=1", "device=cpu"];
    Training::new(&model(name)).set(&settings).set(&["data.shuffle=false"])
}

/// The texts with these labels in turn, in lines of JSON.
fn rows(labels: &[Value]) -> String {
    let row = |(text, label)| format!("{}\n", json!({"text": text, "label": label}));
    TEXTS.iter().zip(labels.iter().cycle()).map(row).collect()
}

#[test]
fn numbers_of_labels_train_the_head_that_their_names_train() {
    let training = training("bert").set(&["max_steps=3"]);
    for (name, labels) in [
        ("names", json!(["old", "wise"])),
        ("case", json!(["OLD", "Wise"])),
        ("numbers", json!([1, 0])),
        ("strings", json!(["1", "0"])),
        ("booleans", json!([true, false])),
    ] {
        let file = format!("{name}.jsonl");
        training.write(&file, &rows(labels.as_array().unwrap()));
        let printed = training.run(&[&format!("out={name}"), &format!("data.train={file}")]);
        assert!(printed.contains("2 labels, the model's own head: wise, old"), "{printed}");
        assert_eq!(training.series(name, "loss"), training.series("names", "loss"), "{name}");
    }
    let plural = training.read("numbers.jsonl").replace("\"label\"", "\"labels\"");
    training.write("plural.jsonl", &plural);
    training.run(&["out=plural", "data.train=plural.jsonl"]);
    assert_eq!(training.series("plural", "loss"), training.series("names", "loss"));
}

#[test]
fn labels_with_fractions_train_as_a_regression_of_transformers() {
    let training = training("bert").set(&["data.train=train.jsonl", "max_steps=30"]);
    let labels = [0.5, 2.25, 3., 4.75, 1.5, 0.];
    training.write("train.jsonl", &rows(&labels.map(Value::from)));
    let printed = training.run(&["data.eval=train.jsonl", "eval_interval=30"]);
    assert!(printed.contains("labels are numbers (regression), a new head"), "{printed}");
    let path = |name: &str| training.path(name).to_str().unwrap().to_owned();
    let config: Value = serde_json::from_str(&training.read("out/adapter/config.json")).unwrap();
    assert_eq!(config["problem_type"], "regression");
    assert_eq!(config["id2label"], json!({"0": "LABEL_0"}));
    let last = |key: &str| training.series("out", key).last().unwrap().1;
    assert!(last("pearson") > 0.8 && last("spearmanr") > 0.7, "{printed}");
    training.write("texts.json", &json!(TEXTS).to_string());
    let base = model("bert").to_str().unwrap().to_owned();
    let loaded = ["loads-bert", &base, &path("out/adapter"), &path("texts.json")];
    let theirs: Vec<f64> = serde_json::from_str(&run_python("finetune.py", &loaded)).unwrap();
    let squares = theirs.iter().zip(labels).map(|(theirs, label)| (theirs - label).powi(2));
    let error = squares.sum::<f64>() / 6.;
    assert!((last("eval_loss") - error).abs() < 1e-4, "PEFT's error is {error}: {printed}");
}

#[test]
fn the_loss_curve_of_a_regression_is_that_of_peft() {
    let training = training("bert");
    let base = training.path("number").to_str().unwrap().to_owned();
    run_python("finetune.py", &["make-bert", &base, "LABEL_0"]);
    let labels = [0.5, 2.25, 3., 4.75, 1.5, 0.];
    let row = |(text, label): (&&str, &f64)| json!({"text": text, "pair": "to be", "label": label});
    let rows: Vec<Value> = TEXTS.iter().zip(&labels).map(row).collect();
    training.write("train.jsonl", &rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let batches: Vec<String> = rows.chunks(3).map(|batch| json!(batch).to_string()).collect();
    training.write("rows.jsonl", &batches.join("\n"));
    let printed = training.run(&[
        &format!("model={base}"),
        "data.train=train.jsonl",
        "data.pair=pair",
        "max_steps=20",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0.1",
        "schedule.warmup_steps=5",
    ]);
    assert!(printed.contains("regression), the model's own head"), "{printed}");
    let rows = training.path("rows.jsonl").to_str().unwrap().to_owned();
    let arguments = ["curve-bert", &base, &rows, "20", "0.01", "0.1", "1.0"];
    let theirs: Value = serde_json::from_str(&run_python("finetune.py", &arguments)).unwrap();
    for key in ["loss", "grad_norm"] {
        let theirs: Vec<f64> = serde_json::from_value(theirs[key].clone()).unwrap();
        let ours = training.series("out", key);
        assert_eq!((ours.len(), theirs.len()), (20, 20));
        for ((step, ours), theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 2e-4, "{key} of step {step}: {ours}, PEFT {theirs}");
        }
    }
}

#[test]
fn labels_for_evaluation_must_be_known_and_be_of_the_same_kind() {
    let training = training("bert").set(&["data.train=train.jsonl", "data.eval=eval.jsonl"]);
    let refused = |train: Value, eval: Value, part: &str| {
        training.write("train.jsonl", &rows(train.as_array().unwrap()));
        training.write("eval.jsonl", &rows(eval.as_array().unwrap()));
        let error = training.refusal(&["max_steps=1"]);
        assert!(error.contains(part), "'{part}' is not in: {error}");
    };
    refused(json!([1, 0]), json!([1, 2]), "eval.jsonl:2: the label '2' is not one of the model's");
    refused(json!([0.5, 2]), json!(["x"]), "eval.jsonl:1: the label 'x' is not a number");
    refused(json!([0.5, 2]), json!([1e39]), "eval.jsonl:1: the label '1e+39' is too large");
    refused(json!(["a", "b"]), json!(["c"]), "eval.jsonl:1: the label 'c' does not occur");
    let several = training.refusal(&["data.problem_type=multi_label_classification"]);
    assert!(several.contains("not implemented: each row has one label"), "{several}");
    refused(json!([[0, 1], "a"]), json!(["a"]), "train.jsonl:1: 'label' is a list: several labels");
    refused(
        json!([0, "1"]),
        json!([0]),
        "train.jsonl:2: 'label' is a string, and a number in the rows",
    );
    refused(json!([0, null]), json!([0]), "train.jsonl:2: the text or the label is empty");
}
