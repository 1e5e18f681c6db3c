//! Recipes: what they train in models of images and texts, and that PEFT loads it.

use std::path::Path;

use crate::common;
use crate::image_text::{config, made, named, paths, read, select, var_store};
use crate::nets::snapshot;
use ln_tuning::{
    merge, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, Norms, Recipe,
};
use tch::Tensor;

/// The models whose recipes are tried in PEFT.
const TRIED: [&str; 6] = ["llava", "llava_tied", "gemma3", "idefics3", "qwen2_5_vl", "qwen3_vl"];

#[test]
fn recipes_are_the_settings_of_the_paper_and_for_llava_those_of_peft() {
    for name in ["llava", "llava_tied"] {
        let peft: Vec<String> = read(made().join(name).join("peft.json"));
        assert_eq!(paths(&select(name, &config(), Norms::Peft)), peft, "{name}");
        for norms in [Norms::Peft, Norms::All] {
            let recipe = select(name, &config().recipe(Recipe::Layernorm), norms);
            assert_eq!(paths(&recipe), peft, "{name}");
        }
    }
    let counted = |name: &str, recipe: Recipe| {
        let selection = select(name, &config().recipe(recipe), Norms::Peft);
        selection.modules().len()
    };
    // Norms of two layers and the last; a connector of one or more modules; embeddings and head.
    for (name, norms, outside, connector) in [
        ("llava", 5, 0, 2),
        ("llava_next", 5, 0, 2),
        ("llava_onevision", 5, 0, 2),
        ("vipllava", 5, 1, 2),
        // With the norm in the connector, which has a tensor of its own.
        ("gemma3", 13, 1, 1),
        ("paligemma", 5, 0, 1),
        ("idefics3", 5, 0, 1),
        ("qwen2_5_vl", 5, 1, 3),
        ("qwen3_vl", 9, 2, 6),
    ] {
        let found = Recipe::ALL.map(|recipe| counted(name, recipe));
        let connector = connector + usize::from(name == "vipllava");
        assert_eq!(found, [norms + connector + 2, norms + outside, connector], "{name}");
    }
    // A text model has norms, embeddings and a head.
    let of_text = |recipe| counted("text", recipe);
    assert_eq!((of_text(Recipe::Layernorm), of_text(Recipe::LayernormSimple)), (7, 5));
    let error = LnTuningModel::new(&var_store("text"), config().recipe(Recipe::Connector));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoTargetModules);
    assert!(error.to_string().contains("`recipe: connector`"), "{error}");
}

#[test]
fn what_recipes_train_is_what_peft_loads() {
    for name in TRIED {
        let (base, everything) = (made().join(name), AdapterOptions::default().norms(Norms::All));
        let mut choices = vec![("all".to_owned(), config())];
        choices.extend(Recipe::ALL.map(|r| (r.to_string(), config().recipe(r))));
        for (choice, asked) in choices {
            let vs = var_store(name);
            let before = snapshot(&vs);
            let mut tuned =
                LnTuningModel::with_options(&vs, asked, "default", &everything).unwrap();
            // A tied head is one of the variables as soon as it is an adapter's.
            let now = snapshot(&vs);
            assert!(before.iter().all(|(name, bits)| now[name] == *bits), "{name} {choice}");
            let state = tuned.state_dict("default").unwrap();
            let changed: Vec<(String, Tensor)> =
                state.into_iter().map(|(key, tensor)| (key, tensor * 0.5 + 0.25)).collect();
            tuned.load_state_dict("default", &changed, &LoadOptions::default()).unwrap();
            let out = base.join(format!("ours_{choice}"));
            tuned.save_pretrained(&out).unwrap();
            let saved = LnTuningConfig::from_file(out.join("adapter_config.json")).unwrap();
            assert!(saved.recipe.is_none() && saved.target_modules.is_some());
            let values = Vec::from_iter(named(changed));
            Tensor::write_safetensors(&values, out.join("values.st")).unwrap();
            if choice == "layernorm" {
                let merged = made().join(format!("merged_{name}"));
                merge(&base, &out, merged, |_, _| ()).unwrap();
            }
            // Saved, loaded, saved: the same bytes.
            tuned.unload().unwrap();
            assert_eq!(snapshot(&vs), before);
            let again = LnTuningModel::from_pretrained(&vs, &out).unwrap();
            again.save_pretrained(out.join("again")).unwrap();
            for file in ["adapter_model.safetensors", "adapter_config.json"] {
                let bytes = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
                assert!(bytes(&out) == bytes(&out.join("again")), "{name} {choice} {file}");
            }
        }
    }
    let checked =
        common::run_python("image_text_adapters.py", &["check", made().to_str().unwrap()]);
    let passed = checked.lines().filter(|line| line.ends_with(" ok")).count();
    assert_eq!(passed, TRIED.len() * 4, "{checked}");
}
