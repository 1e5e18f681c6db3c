//! The loss curves of language models are those of PEFT with PyTorch.

use std::path::Path;

use serde_json::{json, Value};
use tokenizers::Tokenizer;

use crate::common::run_python;
use crate::program::Training;
use crate::{model, SENTENCES};

const STEPS: usize = 50;

/// Prompts of different lengths with their completions.
fn lines() -> Vec<(String, String)> {
    let line = |i: usize| {
        let (a, b) = (SENTENCES[i % 4], SENTENCES[(i / 4 + i) % 4]);
        (format!("{} {}: ", i, &a[..10 + i * 3 % 25]), b[..20 + i * 5 % 20].to_owned())
    };
    (0..16).map(line).collect()
}

/// The rows that the program should make of them, by other means: prompt and completion are tokenised apart, which the
/// test's colon and space allow, and the end-of-sequence token is added.
fn rows(dir: &Path, lines: &[(String, String)]) -> Vec<Value> {
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let row = |(prompt, completion): &(String, String)| {
        let whole = tokenizer.encode(format!("{prompt}{completion}"), true).unwrap();
        let mut ids: Vec<i64> = whole.get_ids().iter().map(|id| i64::from(*id)).collect();
        ids.push(1);
        let inside = |(_, end): &(usize, usize)| *end > prompt.len();
        let mut labels: Vec<i64> = whole
            .get_offsets()
            .iter()
            .zip(&ids)
            .map(|(offsets, id)| if inside(offsets) { *id } else { -100 })
            .collect();
        labels.push(1);
        json!({"ids": ids, "labels": labels})
    };
    lines.iter().map(row).collect()
}

fn curves_agree(family: &str) {
    let dir = model(family);
    let training = Training::new(&dir);
    let lines = lines();
    let jsonl = |(prompt, completion): &(String, String)| {
        format!("{}\n", json!({"prompt": prompt, "completion": completion}))
    };
    training.write("train.jsonl", &lines.iter().map(jsonl).collect::<String>());
    let batches: Vec<String> =
        rows(&dir, &lines).chunks(4).map(|batch| json!(batch).to_string()).collect();
    training.write("rows.jsonl", &batches.join("\n"));
    training.run(&[
        "data.train=train.jsonl",
        "data.shuffle=false",
        "data.packing=false",
        "batch_size=4",
        "max_steps=50",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0.1",
        "schedule.warmup_steps=5",
        "kind=f32",
        "device=cpu",
        "threads=1",
    ]);
    let rows = training.path("rows.jsonl");
    let arguments = [dir.to_str().unwrap(), rows.to_str().unwrap(), "50", "0.01", "0.1", "1.0"];
    let mut command = vec!["curve-lm"];
    command.extend(arguments);
    let reference: Value = serde_json::from_str(&run_python("finetune.py", &command)).unwrap();
    for key in ["loss", "grad_norm"] {
        let ours = training.series("out", key);
        let theirs: Vec<f64> = serde_json::from_value(reference[key].clone()).unwrap();
        assert_eq!((ours.len(), theirs.len()), (STEPS, STEPS));
        for ((step, ours), theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-4, "{key} of step {step}: {ours}, PEFT {theirs}");
        }
    }
    let losses = training.series("out", "loss");
    assert!(losses[STEPS - 1].1 < losses[0].1 * 0.95, "nothing was learned: {losses:?}");
}

#[test]
fn the_loss_curve_of_a_llama_is_that_of_peft() {
    curves_agree("llama");
}

#[test]
fn the_loss_curve_of_a_gpt2_is_that_of_peft() {
    curves_agree("gpt2");
}
