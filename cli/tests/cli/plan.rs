//! `plan` says which tensors of a model would train.

use std::collections::BTreeSet;

use ln_tuning::Norms;
use serde_json::Value;

use crate::program::{printed, refusal, report, text};
use crate::{model, training, trees};

/// `plan` prints what the library selects, which is compared with transformers and PEFT for every architecture.
#[test]
fn plans_are_the_norms_of_transformers_and_the_modules_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["llama", "qwen3", "gpt2", "falcon new", "t5", "bert", "vit", "clip"];
    let described = trees::describe(dir.path(), &names);
    for row in &described.rows {
        let model = dir.path().join(&row.name);
        for (word, norms) in [("all", Norms::All), ("peft", Norms::Peft)] {
            let plan = report(&["plan", "--model", text(&model), "--norms", word, "--json"]);
            let modules: BTreeSet<String> =
                serde_json::from_value(plan["modules"].clone()).unwrap();
            assert_eq!(modules, row.expected(norms, &modules), "{} {word}", row.name);
            assert_eq!(plan["model_type"], row.model_type.as_str());
            if norms == Norms::All {
                assert_eq!(plan["trainable"], row.parameters(&modules), "{}", row.name);
            }
        }
    }
    assert_eq!(described.rows.len(), names.len());
    refusal(&["plan", "--model", text(&dir.path().join("nowhere"))]);
}

#[test]
fn the_memory_of_a_plan_is_that_of_the_dry_run() {
    for family in ["llama", "gpt2"] {
        let dir = model(family);
        let plan = report(&["plan", "--model", text(&dir), "--norms", "peft", "--json"]);
        let training = training().set(&[&format!("model={}", dir.display())]);
        let output = training.command(&[]).args(["--dry-run", "--json"]).output().unwrap();
        let run: Value = serde_json::from_slice(&output.stdout).unwrap();
        for part in ["weights", "trained"] {
            assert_eq!(plan["memory_bytes"][part], run["memory_bytes"][part], "{family}: {part}");
            assert!(plan["memory_bytes"][part].as_u64().unwrap() > 0);
        }
        let words = printed(&["plan", "--model", text(&dir)]);
        assert!(words.contains("memory: weights 0.2 MB as in the files"), "{words}");
    }
}
