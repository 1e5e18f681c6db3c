//! `LNTuningConfig` is read and written as PEFT does. The golden files are real PEFT's, see tests/golden/make.py.

use std::path::{Path, PathBuf};

use ln_tuning::{ErrorKind, LnTuningConfig, Modules, Recipe, TaskType};
use proptest::prelude::*;

fn golden() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/configs");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 13);
    paths
}

fn named(name: &str) -> String {
    let path = golden().into_iter().find(|path| path.file_stem().unwrap() == name).unwrap();
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn files_of_peft_are_read_and_written_back_byte_for_byte() {
    for path in golden() {
        let text = std::fs::read_to_string(&path).unwrap();
        let parsed = LnTuningConfig::parse_file(&path).unwrap();
        assert!(parsed.unknown_keys.is_empty(), "{path:?}: {:?}", parsed.unknown_keys);
        assert_eq!(parsed.config.to_json(), text, "{path:?}");
        assert_eq!(LnTuningConfig::from_yaml(&parsed.config.to_yaml()).unwrap(), parsed.config);
    }
}

#[test]
fn what_is_built_here_is_what_peft_writes_for_the_same_arguments() {
    let config = LnTuningConfig::default;
    for (name, built) in [
        ("defaults", config()),
        ("list", config().target_modules(["norm2", "norm1", "norm2"])),
        ("pattern", config().target_pattern(r".*\.(input|post_attention)_layernorm")),
        (
            "excluded",
            config()
                .target_modules(["norm"])
                .exclude_modules(["layers.0.norm"])
                .modules_to_save(["score"]),
        ),
        ("excluded_pattern", config().target_pattern("norm").exclude_pattern(r".*0\.norm")),
        ("task_seq_2_seq_lm", config().task_type(TaskType::Seq2SeqLm)),
        ("task_causal_lm", config().task_type(TaskType::CausalLm)),
        ("task_token_cls", config().task_type(TaskType::TokenCls)),
        ("task_question_ans", config().task_type(TaskType::QuestionAns)),
        ("task_feature_extraction", config().task_type(TaskType::FeatureExtraction)),
    ] {
        assert_eq!(built.to_json(), named(name), "{name}");
    }
}

#[test]
fn a_recipe_is_one_word_in_place_of_the_targets() {
    for recipe in Recipe::ALL {
        let config = LnTuningConfig::default().recipe(recipe);
        assert_eq!(LnTuningConfig::from_json(&config.to_json()).unwrap(), config);
        let yaml = format!("recipe: {recipe}");
        assert_eq!(LnTuningConfig::from_yaml(&yaml).unwrap(), config);
        assert_eq!(serde_json::to_value(recipe).unwrap(), recipe.name());
        let both = LnTuningConfig::from_yaml(&format!("{yaml}\ntarget_modules: [norm]"));
        let error = both.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(&format!("({recipe}) and 'target_modules'")), "{error}");
    }
    assert_eq!(LnTuningConfig::from_yaml("recipe: null").unwrap(), LnTuningConfig::default());
    for (yaml, words) in [
        ("recipe: paper", "'paper', expected one of layernorm, layernorm-simple, connector"),
        ("recipe: Layernorm", "'Layernorm', expected one of"),
        ("recipe: [layernorm]", "'recipe' is a list, expected a string or null"),
    ] {
        let error = LnTuningConfig::from_yaml(yaml).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn defaults_are_those_of_peft() {
    let config = LnTuningConfig::from_json(&named("defaults")).unwrap();
    assert_eq!(config, LnTuningConfig::default());
    assert_eq!(LnTuningConfig::from_json(r#"{"peft_type": "LN_TUNING"}"#).unwrap(), config);
    assert_eq!(LnTuningConfig::from_yaml("").unwrap(), config);
}

#[test]
fn yaml_takes_names_lists_and_patterns() {
    let text = "\
# comments are fine
task_type: CAUSAL_LM
target_modules: '.*_layernorm'
exclude_modules:
  - layers.0
  - norm
modules_to_save: score
";
    let config = LnTuningConfig::from_yaml(text).unwrap();
    assert_eq!(config.task_type, Some(TaskType::CausalLm));
    assert_eq!(config.target_modules, Some(Modules::Pattern(".*_layernorm".into())));
    let excluded = Modules::List(vec!["layers.0".into(), "norm".into()]);
    assert_eq!(config.exclude_modules, Some(excluded));
    // PEFT would take the letters of a plain string for names.
    assert_eq!(config.modules_to_save, Some(vec!["score".into()]));
}

#[test]
fn unknown_keys_are_kept_out_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter_config.json");
    let text = r#"{"peft_type": "LN_TUNING", "zeta": 1, "alpha": {"x": [1]}, "runtime_config": {}, "revision": "v1"}"#;
    std::fs::write(&path, text).unwrap();
    let parsed = LnTuningConfig::parse_file(&path).unwrap();
    assert_eq!(parsed.unknown_keys, ["alpha", "zeta"]);
    assert_eq!(parsed.config.revision.as_deref(), Some("v1"));
    assert!(!parsed.config.to_json().contains("zeta"));
}

#[test]
fn errors_name_the_file_and_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter_config.json");
    for (text, words) in [
        (r#"{"peft_type": "LORA"}"#, ["peft_type", "'LORA'"]),
        (r#"{"peft_type": "LN_TUNING", "task_type": "NOPE"}"#, ["task_type", "CAUSAL_LM"]),
        (r#"{"peft_type": "LN_TUNING", "target_modules": 3}"#, ["target_modules", "3"]),
        (r#"{"peft_type": "LN_TUNING", "target_modules": [true]}"#, ["target_modules", "true"]),
        (
            r#"{"peft_type": "LN_TUNING", "revision": 1, "revision": 2}"#,
            ["duplicate key", "revision"],
        ),
        (r#"{"peft_type": "LN_TUNING", "#, ["JSON", "line 1"]),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = LnTuningConfig::from_file(&path).unwrap_err().to_string();
        for word in words.into_iter().chain(["adapter_config.json"]) {
            assert!(error.contains(word), "{error:?} does not name {word:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_configuration_survives_json_and_yaml(
        targets in prop::option::of(prop::collection::vec(".{1,12}", 0..4)),
        pattern in prop::option::of(".{1,12}"),
        saved in prop::option::of(prop::collection::vec(".{1,12}", 0..3)),
        base in prop::option::of(".{0,12}"),
        inference_mode: bool,
    ) {
        let mut config = LnTuningConfig { inference_mode, ..Default::default() };
        config.target_modules = targets.map(Modules::List);
        config.exclude_modules = pattern.map(Modules::Pattern);
        config.modules_to_save = saved;
        config.base_model_name_or_path = base;
        let json = config.to_json();
        prop_assert!(json.is_ascii());
        prop_assert_eq!(&LnTuningConfig::from_json(&json).unwrap(), &config);
        prop_assert_eq!(&LnTuningConfig::from_yaml(&config.to_yaml()).unwrap(), &config);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = LnTuningConfig::from_json(&text);
        let _ = LnTuningConfig::from_yaml(&text);
    }
}
