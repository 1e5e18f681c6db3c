//! `plan` says which tensors of a model would train.

use std::collections::BTreeSet;
use std::path::Path;

use ln_tuning::models::{AnyModel, Load};
use ln_tuning::pretrained::{BaseBytes, ModelFiles};
use ln_tuning::Norms;
use serde_json::{json, Value};
use tch::Device;

use crate::common::smollm2;
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

/// The norms of its image tower that a LLaVA does not read are named; a recipe of the paper is asked for by name.
#[test]
fn plans_of_models_of_images_and_texts_say_what_gets_no_gradient() {
    let dir = tempfile::tempdir().unwrap();
    trees::describe(dir.path(), &["llava"]);
    let model = dir.path().join("llava");
    let modules = |plan: &Value| plan["modules"].as_array().unwrap().len();
    let all = report(&["plan", "--model", text(&model), "--json"]);
    // Of two layers the first is used: two norms and the one before it, and five of the text.
    assert_eq!(modules(&all), 8);
    let unused = all["unused"].as_array().unwrap();
    assert_eq!(unused.len(), 3);
    assert_eq!(unused[2]["module"], "model.vision_tower.post_layernorm");
    let said = printed(&["plan", "--model", text(&model)]);
    assert!(said.contains(
        "gets no gradient: model.vision_tower.encoder.layers.1.layer_norm1: `vision_feature_layer`"
    ));
    for (recipe, count) in [("layernorm", 9), ("layernorm-simple", 5), ("connector", 2)] {
        let plan = report(&["plan", "--model", text(&model), "--recipe", recipe, "--json"]);
        assert_eq!((modules(&plan), plan["unused"].as_array().unwrap().len()), (count, 0));
    }
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
        assert!(words.contains("base: mapped, 0.2 MB"), "{words}");
    }
}

#[test]
fn a_plan_counts_the_base_as_it_would_be_kept_without_reading_it() {
    let of = |model: &Path, how: &str| {
        let plan = ["plan", "--model", text(model), "--base-weights", how, "--json"];
        report(&plan)["base"].clone()
    };
    let loaded = |model: &Path, how: &str| {
        let load = Load::on(Device::Cpu).frozen(how.parse().unwrap());
        let (vs, _) = AnyModel::from_files(ModelFiles::open(model).unwrap(), &load).unwrap();
        let bytes = BaseBytes::of(&vs).unwrap();
        json!({"kept": how, "bytes": bytes.all, "matrices": bytes.matrices})
    };
    // GPT-2's matrices stand the other way round; q and k of Llama have another order in a GGUF file.
    for (model, ways) in [
        (model("llama"), &["device", "int8", "nf4", "nf4, device", "streamed"][..]),
        (model("gpt2"), &["int8", "nf4"]),
        (smollm2().to_owned(), &["mapped", "gguf", "gguf, streamed"]),
    ] {
        for how in ways {
            assert_eq!(of(&model, how), loaded(&model, how), "{} {how}", model.display());
        }
    }
    let words = printed(&["plan", "--model", text(smollm2()), "--base-weights", "gguf"]);
    assert!(words.contains("base: gguf, 96.6 MB, 211 matrices in 96.4 MB"), "{words}");
    let error = refusal(&["plan", "--model", text(&model("llama")), "--base-weights", "gguf"]);
    assert!(error.contains("holds no blocks of GGUF"), "{error}");
}
