//! Batches padded to a multiple of a length give the losses and scores of those that are not.

use serde_json::json;

use crate::program::Training;
use crate::{classifier, model, text};

/// Runs that only differ in this setting, with an evaluation.
fn padding_changes_nothing(training: &Training, keys: &[&str], multiples: [usize; 2]) {
    let run = |multiple: usize| {
        let (out, settings) =
            (format!("out{multiple}"), format!("data.pad_to_multiple_of={multiple}"));
        training.run(&[
            &format!("out={out}"),
            &settings,
            "max_steps=6",
            "data.eval_fraction=0.25",
            "eval_interval=3",
        ]);
        keys.iter()
            .chain(&["loss", "grad_norm", "tokens"])
            .map(|key| (*key, training.series(&out, key)))
            .collect()
    };
    let plain: Vec<(&str, Vec<(u64, f64)>)> = run(1);
    for multiple in multiples {
        for ((key, expected), (_, found)) in plain.iter().zip(run(multiple)) {
            assert!(!expected.is_empty() && expected.len() == found.len(), "{key}");
            for ((step, expected), (_, found)) in expected.iter().zip(found) {
                let off = (found - expected).abs() / expected.abs().max(1e-3);
                assert!(
                    off < 1e-4,
                    "{key} of step {step}: {expected}, to a multiple of {multiple} {found}"
                );
            }
        }
    }
}

fn language(model: &str) -> Training {
    let settings = [
        "data.train=train.txt",
        "data.max_length=40",
        "batch_size=4",
        "optimizer.lr=0.02",
        "threads=1",
    ];
    let training = Training::new(&crate::model(model)).set(&settings).set(&["device=cpu"]);
    training.write("train.txt", &text(40));
    training
}

#[test]
fn rows_of_language_models_may_be_padded_further() {
    let keys = ["eval_loss", "perplexity"];
    padding_changes_nothing(&language("llama"), &keys, [64, 7]);
    let apart = |model| language(model).set(&["data.packing=false", "accumulation=2"]);
    // It has 256 positions.
    padding_changes_nothing(&apart("gpt2"), &keys, [64, 300]);
}

/// Lengths above those that a rope has learned from change its angles.
#[test]
fn packed_rows_of_a_rope_that_depends_on_the_length_may_be_padded_further() {
    let training = language("llama");
    let dir = training.path("model");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(model("llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["max_position_embeddings"] = json!(30);
    config["rope_parameters"] = json!({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for packing in ["data.packing=true", "data.packing=false"] {
        let training = language("llama").set(&[&format!("model={}", dir.display()), packing]);
        padding_changes_nothing(&training, &["eval_loss"], [64, 7]);
    }
}

#[test]
fn texts_of_classifiers_may_be_padded_further() {
    // It has 64 positions.
    for more in [&["data.max_length=64"][..], &["data.max_length=30", "data.pair=pair"]] {
        let training = classifier::training("bert").set(&["data.train=train.csv"]).set(more);
        training.write("train.csv", &classifier::csv(&classifier::rows(32), ["old", "wise"]));
        padding_changes_nothing(&training, &["eval_loss", "accuracy", "f1"], [32, 100]);
    }
}

#[test]
fn multiples_that_no_batch_can_have_are_refused() {
    for multiple in ["0", "65537", "18446744073709551615"] {
        let error = language("llama").refusal(&[&format!("data.pad_to_multiple_of={multiple}")]);
        let words =
            format!("'data.pad_to_multiple_of' is {multiple}, expected 1 to 65536, or null");
        assert!(error.contains(&words), "{error}");
    }
}
