//! Classifiers of texts and images.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common::{run_python, shared};
use crate::program::{best_device, printed, Training};
use image::{Rgb, RgbImage};
use ln_tuning::models::{Model, ModelConfig, ViTConfig, ViTForImageClassification};
use ln_tuning::pretrained;
use serde_json::{json, Value};
use tch::{nn::VarStore, Device};

/// A tiny random BERT with a head for "old" and "wise", a DINOv2 and a ViT, made once for all tests.
pub fn model(name: &str) -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let dir = MADE.get_or_init(|| {
        let dir = shared("classifier");
        let _ = std::fs::remove_dir_all(&dir);
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        run_python("finetune.py", &["make-bert", &path("bert"), "wise,old"]);
        run_python("finetune.py", &["make-dinov2", &path("dinov2")]);
        tch::manual_seed(0);
        let config = json!({
            "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 16,
            "patch_size": 4, "initializer_range": 0.2,
        });
        let config = ViTConfig::from_value(&config).unwrap();
        let vs = VarStore::new(Device::Cpu);
        ViTForImageClassification::new(&vs.root(), &config).unwrap();
        pretrained::save(&vs, path("vit"), &config.to_json()).unwrap();
        dir
    });
    dir.join(name)
}

const OLD: [&str; 3] = ["the quick brown fox", "jumps over the lazy dog", "the lazy dog jumps"];
const WISE: [&str; 3] =
    ["a penny saved is a penny earned", "that is the question", "a stitch in time"];

/// Texts in which the label shows, and a second text that says nothing.
pub fn rows(count: usize) -> Vec<(String, String, &'static str)> {
    let row = |i: usize| {
        let (texts, label) = if i.is_multiple_of(2) { (OLD, "old") } else { (WISE, "wise") };
        let text = format!("{} {}", texts[i / 2 % 3], texts[i / 6 % 3]);
        (text, "to be, or not to be".to_owned(), label)
    };
    (0..count).map(row).collect()
}

pub fn csv(rows: &[(String, String, &str)], labels: [&str; 2]) -> String {
    let line = |(text, pair, label): &(String, String, &str)| {
        let label = if *label == "old" { labels[0] } else { labels[1] };
        format!("\"{text}\",\"{pair}\",{label}\n")
    };
    format!("text,pair,label\n{}", rows.iter().map(line).collect::<String>())
}

pub fn training(name: &str) -> Training {
    let settings = ["batch_size=8", "optimizer.lr=0.02", "threads=1", "workers=1", "device=cpu"];
    Training::new(&model(name)).set(&settings)
}

#[test]
fn the_loss_curve_of_a_bert_is_that_of_peft() {
    let training = training("bert").set(&["data.train=train.csv", "data.pair=pair"]);
    let rows = rows(32);
    training.write("train.csv", &csv(&rows, ["old", "wise"]));
    let reference = |(text, pair, label): &(String, String, &str)| json!({"text": text, "pair": pair, "label": label});
    let batches = rows
        .chunks(8)
        .map(|batch| json!(batch.iter().map(reference).collect::<Vec<_>>()).to_string());
    training.write("rows.jsonl", &batches.collect::<Vec<_>>().join("\n"));
    let printed = training.run(&[
        "data.shuffle=false",
        "max_steps=50",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0.1",
        "schedule.warmup_steps=5",
    ]);
    assert!(printed.contains("the model's own head: wise, old"), "{printed}");
    let (dir, rows) = (model("bert"), training.path("rows.jsonl"));
    let arguments =
        ["curve-bert", dir.to_str().unwrap(), rows.to_str().unwrap(), "50", "0.01", "0.1", "1.0"];
    let theirs: Value = serde_json::from_str(&run_python("finetune.py", &arguments)).unwrap();
    for key in ["loss", "grad_norm"] {
        let theirs: Vec<f64> = serde_json::from_value(theirs[key].clone()).unwrap();
        let ours = training.series("out", key);
        assert_eq!((ours.len(), theirs.len()), (50, 50));
        for ((step, ours), theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-4, "{key} of step {step}: {ours}, PEFT {theirs}");
        }
    }
    let losses = training.series("out", "loss");
    assert!(losses[49].1 < 0.5 * losses[0].1, "nothing was learned: {losses:?}");
}

#[test]
fn labels_that_the_model_does_not_know_get_a_new_head_that_peft_loads() {
    let training = training("bert").set(&["data.train=train.csv", "max_steps=60"]);
    training.write("train.csv", &csv(&rows(48), ["10 foxes", "9 pennies"]));
    let printed = training.run(&["data.eval_fraction=0.25", "eval_interval=20"]);
    // In natural order.
    assert!(printed.contains("2 labels, a new head: 9 pennies, 10 foxes"), "{printed}");
    assert!(printed.contains("6 modules train"), "{printed}");
    let last = |key: &str| training.series("out", key).last().unwrap().1;
    assert!(last("accuracy") == 1. && last("f1") == 1., "{printed}");
    let texts: Vec<String> = rows(3).into_iter().map(|(text, ..)| text).collect();
    training.write("texts.json", &json!(texts).to_string());
    let (base, adapter, texts) =
        (model("bert"), training.path("out/adapter"), training.path("texts.json"));
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let arguments = ["loads-bert", &path(&base), &path(&adapter), &path(&texts)];
    let labels: Vec<String> = serde_json::from_str(&run_python("finetune.py", &arguments)).unwrap();
    assert_eq!(labels, ["10 foxes", "9 pennies", "10 foxes"]);
    merged_into_its_base("bert", &training, "data.train=train.csv");
}

#[test]
fn json_lines_train_as_csv_does() {
    let training = training("bert").set(&["max_steps=5"]);
    let rows = rows(24);
    training.write("train.csv", &csv(&rows, ["old", "wise"]));
    let line =
        |(text, _, label): &(String, String, &str)| format!("{}\n", json!({"s": text, "y": label}));
    training.write("train.jsonl", &rows.iter().map(line).collect::<String>());
    training.run(&["out=csv", "data.train=train.csv"]);
    training.run(&["out=jsonl", "data.train=train.jsonl", "data.text=s", "data.label=y"]);
    assert_eq!(training.series("csv", "loss"), training.series("jsonl", "loss"));
}

#[test]
fn block_checkpointing_changes_no_loss_of_a_classifier() {
    for (name, data) in [("bert", "data.train=train.csv"), ("vit", "data.train=images")] {
        let training = training(name).set(&["max_steps=6", data]);
        training.write("train.csv", &csv(&rows(24), ["old", "wise"]));
        images(&training);
        for (out, blocks) in [("plain", "none"), ("all", "all"), ("second", "2")] {
            training.run(&[&format!("out={out}"), &format!("checkpointing={blocks}")]);
        }
        let plain = training.series("plain", "loss");
        assert!(plain.len() == 6 && plain[0] != plain[5], "{plain:?}");
        for out in ["all", "second"] {
            assert_eq!(plain, training.series(out, "loss"), "{name}: {out}");
        }
    }
}

/// Squares that are red or blue.
pub fn images(training: &Training) {
    for (class, colour) in [("red", [220, 40, 40]), ("blue", [40, 40, 220])] {
        let dir = training.path("images").join(class);
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..12_u8 {
            let shade = |x: u32, y: u32, c: u8| c.saturating_add((x + y) as u8).saturating_sub(i);
            let image = RgbImage::from_fn(20, 24, |x, y| Rgb(colour.map(|c: u8| shade(x, y, c))));
            image.save(dir.join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn folders_of_images_train_a_vit_and_a_dinov2() {
    for name in ["vit", "dinov2"] {
        let training = training(name).set(&["data.train=images", "max_steps=30"]);
        images(&training);
        let printed = training.run(&["data.eval_fraction=0.25", "eval_interval=30"]);
        assert!(printed.contains("18 images") && printed.contains("blue, red"), "{printed}");
        let accuracy = training.series("out", "accuracy").last().unwrap().1;
        assert!(accuracy == 1., "{name}: {printed}");
        let config: Value =
            serde_json::from_str(&training.read("out/adapter/config.json")).unwrap();
        assert_eq!(config["id2label"], json!({"0": "blue", "1": "red"}));
        let adapter: Value =
            serde_json::from_str(&training.read("out/adapter/adapter_config.json")).unwrap();
        assert_eq!(adapter["modules_to_save"], json!(["classifier"]));
        merged_into_its_base(name, &training, "data.train=images");
    }
}

/// Merged, the new head and its labels are the model's own, and are right from the first step on.
fn merged_into_its_base(name: &str, training: &Training, data: &str) {
    let (base, adapter) = (model(name), training.path("out/adapter"));
    let merged = training.path("merged");
    let words = |path: &Path| path.to_str().unwrap().to_owned();
    let (base, adapter, out) = (words(&base), words(&adapter), words(&merged));
    printed(&["merge", "--base", &base, "--adapter", &adapter, "--out", &out]);
    assert!(printed(&["inspect", &adapter, "--base", &base]).contains("classifier"));
    let config = |dir: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
    };
    let (own, beside) = (config(&merged), config(&training.path("out/adapter")));
    for key in ["id2label", "label2id", "architectures"] {
        assert_eq!(own[key], beside[key], "{name}: {key}");
    }
    let settings = ["out=again", "max_steps=1", "optimizer.lr=0", "data.eval_fraction=0.25"];
    let model = format!("model={out}");
    let printed = training.run(&[&settings[..], &[&model, data, "eval_interval=1"]].concat());
    assert!(printed.contains("the model's own head"), "{name}: {printed}");
    let scores = |out: &str, key: &str| training.series(out, key).last().unwrap().1;
    for key in ["accuracy", "eval_loss"] {
        let (before, after) = (scores("out", key), scores("again", key));
        assert!((before - after).abs() < 1e-5, "{name}: {key} {before}, merged {after}");
    }
}

#[test]
fn texts_and_images_train_in_bf16_on_the_best_device() {
    let device = best_device("a classifier in bf16");
    let settings = ["max_steps=60", "kind=bf16", "data.eval_fraction=0.25", "eval_interval=60"];
    for (name, data) in [("bert", "data.train=train.csv"), ("vit", "data.train=images")] {
        let training = training(name).set(&settings).set(&[data]);
        training.write("train.csv", &csv(&rows(48), ["x", "y"]));
        images(&training);
        let printed = training.run(&[device]);
        assert!(printed.contains("weights in BFloat16"), "{printed}");
        let accuracy = training.series("out", "accuracy")[0].1;
        assert!(accuracy >= 0.9, "{name}: {printed}");
    }
}

#[test]
fn a_killed_run_of_a_classifier_ends_as_one_that_was_not() {
    let settings = ["data.train=train.csv", "max_steps=20", "save_interval=1", "accumulation=2"];
    let training = training("bert").set(&settings);
    training.write("train.csv", &csv(&rows(48), ["x", "y"]));
    training.run(&["out=whole"]);
    for wait in [700, 900, 1100] {
        let mut child = training.command(&[]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    training.run(&[]);
    let bytes =
        |out: &str| std::fs::read(training.path(out).join("adapter/adapter_model.safetensors"));
    assert!(bytes("whole").unwrap() == bytes("out").unwrap());
    assert_eq!(training.series("whole", "loss"), training.series("out", "loss"));
}

#[test]
fn bad_data_is_refused_with_its_place() {
    let training = training("bert").set(&["data.train=train.csv", "max_steps=2"]);
    let refused = |more: &[&str], parts: &[&str]| {
        let error = training.refusal(more);
        for part in parts {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
        assert!(!training.path("out/metrics.jsonl").exists());
    };
    training.write("train.csv", "text,label\na,x\n,y\nb,x,z\n");
    refused(&[], &["2 bad lines", "train.csv:3: the text or the label is empty", "train.csv:4:"]);
    refused(&["data.label=class"], &["no column 'class', only text, label"]);
    refused(&["data.bad_lines=skip"], &["expected two labels or more"]);
    training.write("train.csv", &csv(&rows(8), ["x", "y"]));
    training.write("eval.csv", "text,label\nthe fox,z\n");
    refused(&["data.eval=eval.csv"], &["eval.csv:2: the label 'z' does not occur"]);
    refused(&["checkpointing=some"], &["'checkpointing'"]);
    refused(&["data.txt=a"], &["is it 'data.text'?"]);
    training.write("train.jsonl", "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\"}\n");
    refused(&["data.train=train.jsonl"], &["train.jsonl:2: there is no 'label'"]);
    images(&training);
    std::fs::write(training.path("images/red/3.png"), "no image").unwrap();
    refused(&["data.train=images"], &["images/red/3.png: this is not an image"]);
    std::fs::remove_file(training.path("images/red/3.png")).unwrap();
    refused(&["data.train=images"], &["model_type 'bert'; for images there are vit, dinov2"]);
}

#[test]
fn the_sample_holds_every_setting_and_no_other() {
    let training = training("bert");
    let sample = include_str!("../../src/classifier/sample.yaml");
    let show = |config: &str| {
        let own = Training::new(Path::new("bert-base-uncased"));
        own.write("settings.yaml", config);
        let output = own.command(&[]).arg("--show").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        serde_yaml::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (with, without) = (show(sample), show("data: {train: train.csv}"));
    assert_eq!(with, without);
    let sample: Value = serde_yaml::from_str(sample).unwrap();
    same_keys(&sample, &with, "");
    drop(training);
}

fn same_keys(sample: &Value, all: &Value, above: &str) {
    let (Some(sample), Some(all)) = (sample.as_object(), all.as_object()) else { return };
    for (key, value) in all {
        let named = sample.get(key).unwrap_or_else(|| panic!("the sample lacks '{above}{key}'"));
        same_keys(named, value, &format!("{above}{key}."));
    }
}
