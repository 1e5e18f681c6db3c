//! Adapters on models of images and texts: what they select, that PEFT agrees, and the keys of other layouts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common;
use crate::nets::{bits, snapshot};
use ln_tuning::models::{AnyModel, Inputs};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{
    merge, AdapterOptions, ErrorKind, Layers, LnTuningConfig, LnTuningModel, LoadOptions, Norms,
    Recipe, Selection,
};
use tch::{nn, no_grad, Device, Tensor};

/// The models and adapters of transformers and PEFT, made once.
pub fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        common::run_python("image_text_adapters.py", &["make", dir.path().to_str().unwrap()]);
        dir
    });
    made.path()
}

pub fn read<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tensors(path: PathBuf) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn files(name: &str) -> ModelFiles {
    ModelFiles::open(made().join(name)).unwrap()
}

pub fn var_store(name: &str) -> nn::VarStore {
    files(name).var_store(Device::Cpu, None, |_| true).unwrap()
}

pub fn config() -> LnTuningConfig {
    LnTuningConfig::default()
}

/// The variables that a file's keys mean.
pub fn named(state: Vec<(String, Tensor)>) -> BTreeMap<String, Tensor> {
    let name = |key: &str| {
        let key = key.replace("base_model.model.", "").replace(".ln_tuning_layers.", ".");
        key.replace("multi_modal_projector.default.", "multi_modal_projector.")
    };
    state.into_iter().map(|(key, tensor)| (name(&key), tensor)).collect()
}

fn assert_same(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>, case: &str) {
    let names = |all: &BTreeMap<String, Tensor>| all.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(found), names(expected), "{case}");
    for (name, tensor) in expected {
        assert_eq!(bits(&found[name]), bits(tensor), "{case}: {name}");
    }
}

pub fn select(name: &str, config: &LnTuningConfig, norms: Norms) -> Selection {
    let (files, variables) = (files(name), files(name).variables_with_copies());
    let selection = Selection::new(&variables, config, files.model_type(), norms).unwrap();
    selection.used_by(&variables, config, files.config(), files.head()).unwrap()
}

pub fn paths(selection: &Selection) -> Vec<String> {
    let mut paths: Vec<String> = selection.modules().iter().map(|m| m.path.clone()).collect();
    paths.sort();
    paths
}

#[test]
fn norms_that_get_no_gradient_are_left_out_and_named() {
    let mut seen = 0;
    for name in [
        "llava",
        "llava_last",
        "llava_first",
        "llava_list",
        "llava_siglip",
        "llava_tied",
        "llava_next",
        "llava_onevision",
        "vipllava",
        "gemma3",
        "paligemma",
        "idefics3",
        "qwen2_5_vl",
        "qwen3_vl",
        "internvl",
        "internvl_inner",
        "mistral3",
        "clip",
        "siglip",
    ] {
        let expected: Vec<String> = read(made().join(name).join("unused.json"));
        let selection = select(name, &config(), Norms::All);
        let mut unused: Vec<&str> = selection.unused().iter().map(|m| m.path.as_str()).collect();
        unused.sort_unstable();
        assert_eq!(unused, expected, "{name}");
        assert!(!paths(&selection).iter().any(|path| expected.contains(path)), "{name}");
        seen += expected.len();
    }
    assert!(seen > 20, "{seen}");
    // In the status of a model from a directory, with the reason.
    let vs = var_store("llava");
    let options = AdapterOptions::default().norms(Norms::All);
    let tuned = LnTuningModel::with_options(&vs, config(), "default", &options).unwrap();
    let unused = &tuned.model_status().unused["default"];
    assert_eq!(unused.len(), 3);
    assert!(unused[0].reason.contains("`vision_feature_layer` is -2"), "{}", unused[0].reason);
    tuned.unload().unwrap();
    // Named by the user alone, they are an error; among others, they are left out.
    let before = snapshot(&vs);
    for names in [
        &["post_layernorm"][..],
        &["norm", "layers.2.layer_norm1"],
        &["vision_tower.post_layernorm"],
    ] {
        let asked = config().target_modules(names.iter().copied());
        let error = LnTuningModel::new(&vs, asked).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoGradient, "{error}");
        assert!(error.to_string().contains("`vision_feature_layer` is -2"), "{error}");
    }
    let error = LnTuningModel::new(&vs, config().target_pattern(".*post_layernorm")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoGradient, "{error}");
    assert_eq!(snapshot(&vs), before);
    let tuned = LnTuningModel::new(&vs, config().target_modules(["layer_norm1"])).unwrap();
    assert_eq!(tuned.layer_status().len(), 2);
}

/// Bands of layers count in each tower; patterns may match in both; what is written selects the same again.
#[test]
fn settings_over_two_towers_select_what_they_say() {
    let files = files("llava");
    let variables = files.variables_with_copies();
    let (vision, text) = ("model.vision_tower.encoder.layers", "model.language_model.layers");
    let select =
        |asked: &LnTuningConfig, layers: Option<Layers>| -> ln_tuning::Result<Vec<String>> {
            let mut selection = Selection::new(&variables, asked, files.model_type(), Norms::All)?;
            if let Some(layers) = layers {
                selection = selection.in_layers(&variables, asked, layers)?;
            }
            let selection = selection.used_by(&variables, asked, files.config(), files.head())?;
            let exported = selection.export_config(asked);
            let again = Selection::new(&variables, &exported, None, Norms::All)?;
            assert_eq!(again.modules().len(), selection.modules().len(), "{exported:?}");
            assert_eq!(paths(&again), paths(&selection), "{exported:?}");
            Ok(paths(&selection))
        };
    let of_layer = |layer: usize| {
        let mut all = ["input_layernorm", "post_attention_layernorm"]
            .map(|n| format!("{text}.{layer}.{n}"))
            .to_vec();
        all.extend(["layer_norm1", "layer_norm2"].map(|n| format!("{vision}.{layer}.{n}")));
        all
    };
    for layer in [0, 1] {
        let band = Some(Layers::new(layer..layer + 1));
        assert_eq!(select(&config(), band).unwrap(), of_layer(layer));
    }
    // The third layer of the tower is not used, and the text model has two.
    let error = select(&config(), Some(Layers::new(2..3))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoGradient, "{error}");
    let both = config().target_pattern(r".*\.(layer_norm1|input_layernorm)");
    let first = |tower: &str, name: &str| [0, 1].map(|layer| format!("{tower}.{layer}.{name}"));
    let (seen, read) = (first(vision, "layer_norm1"), first(text, "input_layernorm"));
    assert_eq!(select(&both, None).unwrap(), [&read[..], &seen[..]].concat());
    assert_eq!(select(&both.clone().exclude_pattern(".*vision.*"), None).unwrap(), read);
    let without_text = both.clone().exclude_pattern("(?i).*LANGUAGE.*");
    assert_eq!(select(&without_text, None).unwrap(), seen);
    let without_first = both.clone().exclude_modules(["layers.0.layer_norm1"]);
    assert_eq!(select(&without_first, None).unwrap(), [&read[..], &seen[1..]].concat());
    // A recipe leaves out what is excluded, and takes what is to be saved besides.
    let recipe = config().recipe(Recipe::Layernorm).exclude_modules(["lm_head", "embed_tokens"]);
    assert_eq!(select(&recipe, None).unwrap().len(), 7);
    let whole = config().recipe(Recipe::LayernormSimple).modules_to_save(["multi_modal_projector"]);
    assert_eq!(select(&whole, None).unwrap().len(), 7);
    let twice = config().recipe(Recipe::Layernorm).modules_to_save(["lm_head"]);
    assert_eq!(select(&twice, None).unwrap().len(), 9);
    let error = select(&recipe.target_modules(["norm"]), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
}

#[test]
fn an_adapter_of_peft_for_llava_is_loaded_merged_and_unloaded_with_its_connector_as_one() {
    for name in ["llava", "llava_tied"] {
        let dir = made().join(name);
        let reference = tensors(dir.join("reference.st"));
        let (vs, model) = AnyModel::from_pretrained(&dir, Device::Cpu, None).unwrap();
        let check = |model: &AnyModel, what: &str| {
            let inputs =
                Inputs::new(&reference["input_ids"]).pixel_values(&reference["pixel_values"]);
            let logits = no_grad(|| model.logits(inputs)).unwrap();
            let difference = (logits - &reference["logits"]).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{name} {what}: {difference}");
        };
        let before = snapshot(&vs);
        let mut tuned = LnTuningModel::from_pretrained(&vs, dir.join("peft")).unwrap();
        let expected = tensors(dir.join("values.st"));
        assert_same(&named(tuned.state_dict("default").unwrap()), &expected, name);
        check(&model, "loaded");
        tuned.merge_adapter("default").unwrap();
        check(&model, "merged");
        tuned.unmerge_adapter().unwrap();
        // Its difference from the base, and all of it as one of one.
        let diff = tuned.diff("default", None).unwrap();
        assert_eq!(diff.tensors.len(), expected.len(), "{name}");
        assert!(diff.tensors.iter().all(|row| row.norm > 0.), "{name}");
        tuned.interpolate(&[("default", 1.)], "same").unwrap();
        assert_same(&named(tuned.state_dict("same").unwrap()), &expected, name);
        tuned.interpolate(&[("default", 0.5)], "half").unwrap();
        tuned.set_adapter("same").unwrap();
        check(&model, "interpolated");
        tuned.delete_adapter("half").unwrap();
        tuned.unload().unwrap();
        assert_eq!(snapshot(&vs), before);
        let out = made().join(format!("merged_peft_{name}"));
        merge(&dir, dir.join("peft"), &out, |_, _| ()).unwrap();
        check(&AnyModel::from_pretrained(&out, Device::Cpu, None).unwrap().1, "merged on disk");
        let tuned = LnTuningModel::from_pretrained(&vs, dir.join("peft")).unwrap();
        tuned.merge_and_unload().unwrap();
        check(&model, "merged for good");
    }
}

/// Of former versions of transformers, of a part alone: PEFT 0.21.2 loads them as nothing, which the Python half shows.
#[test]
fn adapters_of_every_layout_load_bit_for_bit() {
    let mut cases = 0;
    for entry in std::fs::read_dir(made().join("layouts")).unwrap() {
        let dir = entry.unwrap().path();
        if dir.ends_with("now") {
            continue;
        }
        let case = dir.file_name().unwrap().to_string_lossy().into_owned();
        let model = std::fs::read_to_string(dir.join("model.txt")).unwrap();
        let expected = tensors(dir.join("values.st"));
        let vs = var_store(&model);
        let before = snapshot(&vs);
        let options = LoadOptions::default();
        for adapter in ["default", "mine"] {
            let (mut tuned, report) =
                LnTuningModel::from_pretrained_with(&vs, &dir, adapter, &options).unwrap();
            assert_eq!(report.missing_keys.len() + report.unexpected_keys.len(), 0, "{case}");
            assert_same(&named(tuned.state_dict(adapter).unwrap()), &expected, &case);
            // Into an adapter that is attached, too.
            let moved: Vec<(String, Tensor)> =
                Tensor::read_safetensors(dir.join("adapter_model.safetensors")).unwrap();
            let moved: Vec<_> = moved.into_iter().map(|(key, value)| (key, value + 1.)).collect();
            let all: BTreeMap<String, Tensor> =
                expected.iter().map(|(name, value)| (name.clone(), value + 1.)).collect();
            let state = tuned.state_dict(adapter).unwrap();
            tuned.load_state_dict(adapter, &moved, &options).unwrap();
            assert_same(&named(tuned.state_dict(adapter).unwrap()), &all, &case);
            tuned.load_state_dict(adapter, &state, &options).unwrap();
            // Saved, it has the names of now.
            let again = tempfile::tempdir().unwrap();
            tuned.save_pretrained(again.path()).unwrap();
            let saved =
                if adapter == "default" { again.path().into() } else { again.path().join(adapter) };
            tuned.unload().unwrap();
            assert_eq!(snapshot(&vs), before);
            let tuned = LnTuningModel::from_pretrained(&vs, saved).unwrap();
            assert_same(&named(tuned.state_dict("default").unwrap()), &expected, &case);
            tuned.unload().unwrap();
        }
        // Without model code, in a model directory.
        let out = dir.join("merged");
        merge(made().join(&model), &dir, &out, |_, _| ()).unwrap();
        let merged = ModelFiles::open(&out).unwrap();
        for (name, tensor) in &expected {
            assert_eq!(bits(&merged.tensor(name).unwrap()), bits(tensor), "{case}: {name}");
        }
        cases += 1;
    }
    assert_eq!(cases, 20);
}

#[test]
fn an_adapter_that_fits_no_layout_whole_is_refused() {
    let layouts = made().join("layouts");
    let short = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(layouts.join("former").join(name), short.path().join(name)).unwrap();
    }
    let file = short.path().join("adapter_model.safetensors");
    let all = Tensor::read_safetensors(&file).unwrap();
    Tensor::write_safetensors(&all[1..], &file).unwrap();
    let vs = var_store("llava");
    let before = snapshot(&vs);
    let error = LnTuningModel::from_pretrained(&vs, short.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingKeys, "{error}");
    let lacking = LoadOptions::default().allow_missing(true);
    let (tuned, report) =
        LnTuningModel::from_pretrained_with(&vs, short.path(), "default", &lacking).unwrap();
    assert_eq!((report.missing_keys.len(), report.unexpected_keys.len()), (1, 0));
    tuned.unload().unwrap();
    // A rule of the user's for a file that lacks nothing goes first.
    let rules = [
        (r"^language_model\.model", "model.language_model"),
        (r"^vision_tower\.vision_model", "model.vision_tower"),
    ];
    let mapped = LoadOptions::default().key_mapping(rules);
    let load = |options: &LoadOptions, vs, case: &str| {
        LnTuningModel::from_pretrained_with(vs, layouts.join(case), "default", options)
    };
    load(&mapped, &vs, "former").unwrap().0.unload().unwrap();
    assert_eq!(snapshot(&vs), before);

    // One of images and texts on the text model alone: what is not text has no place there.
    let vs = var_store("text");
    let before = snapshot(&vs);
    for case in ["between", "former"] {
        let error = load(&LoadOptions::default(), &vs, case).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedKeys, "{error}");
        for word in ["layer_norm1", "allow_unexpected", "another class"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(snapshot(&vs), before);
        let (tuned, report) =
            load(&LoadOptions::default().allow_unexpected(true), &vs, case).unwrap();
        assert!(report.unexpected_keys.iter().all(|key| key.contains("vision_tower")));
        assert_eq!(tuned.layer_status().len(), 5);
        tuned.unload().unwrap();
    }
}
