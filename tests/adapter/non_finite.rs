//! Weights that are NaN or infinite, or that the model's kind cannot hold: refused by name and value, with nothing
//! changed.

use crate::nets::{snapshot, state_of, Net};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{
    merge, AdapterOptions, Error, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, Precision,
    SaveKind, SaveOptions, Sgd,
};
use tch::{nn, Device, Kind, Tensor};

const KEY: &str = "base_model.model.norm1.ln_tuning_layers.weight";

fn check(case: &str, error: &Error, words: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::NonFinite, "{case}: {error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{case}: {text}");
}

/// `state` with this value in one element of one tensor, in another kind.
fn with(state: &[(String, Tensor)], key: &str, kind: Kind, value: f64) -> Vec<(String, Tensor)> {
    let copied = state.iter().map(|(own, tensor)| {
        let tensor = tensor.to_kind(kind).copy();
        if own == key {
            let _ = tensor.view([-1]).get(3).fill_(value);
        }
        (own.clone(), tensor)
    });
    copied.collect()
}

#[test]
fn a_state_with_a_value_that_the_model_cannot_hold_changes_nothing() {
    let (large, infinite) = (70_000., f64::INFINITY);
    let cases = [
        (Kind::Float, Kind::Float, f64::NAN, "NaN"),
        (Kind::Float, Kind::Float, infinite, "inf"),
        (Kind::Float, Kind::Float, -infinite, "-inf"),
        (Kind::Float, Kind::Half, f64::NAN, "NaN"),
        (Kind::Float, Kind::Double, 1e39, "1000000000000000000000000000000000000000"),
        (Kind::Float, Kind::Double, -1e39, "-1000000000000000000000000000000000000000"),
        (Kind::Half, Kind::Float, large, "70000"),
        (Kind::Half, Kind::BFloat16, large, "70144"),
        (Kind::Half, Kind::Double, -65_520., "-65520"),
        (Kind::BFloat16, Kind::Float, 3.4e38, "Half"),
        (Kind::BFloat16, Kind::Double, 1e39, "BFloat16"),
        (Kind::Double, Kind::Double, infinite, "inf"),
    ];
    for (model, file, value, word) in cases {
        for (precision, key) in [
            (Precision::Master, KEY),
            (Precision::Model, KEY),
            (Precision::Master, "base_model.model.head.weight"),
        ] {
            let case = format!("{value} of {file:?} in {key} of a model in {model:?}");
            let net = Net::new(model);
            let config = LnTuningConfig::default().modules_to_save(["head"]);
            let options = AdapterOptions::default().precision(precision);
            let mut tuned =
                LnTuningModel::with_options(&net.vs, config, "default", &options).unwrap();
            let state = with(&tuned.state_dict("default").unwrap(), key, file, value);
            let before = (snapshot(&net.vs), state_of(&tuned, "default"));
            let error =
                tuned.load_state_dict("default", &state, &LoadOptions::default()).unwrap_err();
            let word =
                if model == Kind::BFloat16 && file == Kind::Float { "BFloat16" } else { word };
            check(&case, &error, &[key, word]);
            assert_eq!((snapshot(&net.vs), state_of(&tuned, "default")), before, "{case}");
            // Other tensors alone do not help either: none is written before all are checked.
            let partial = LoadOptions::default().allow_missing(true);
            let some: Vec<_> = state.into_iter().rev().collect();
            check(&case, &tuned.load_state_dict("default", &some, &partial).unwrap_err(), &[key]);
            assert_eq!((snapshot(&net.vs), state_of(&tuned, "default")), before, "{case}");
        }
    }
}

#[test]
fn the_largest_values_of_each_kind_are_taken() {
    for (kind, largest) in [
        (Kind::Half, 65_504.),
        (Kind::BFloat16, 3.38e38),
        (Kind::Float, 3.4e38),
        (Kind::Double, 1e300),
    ] {
        let net = Net::new(kind);
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let state = with(&tuned.state_dict("default").unwrap(), KEY, Kind::Double, largest);
        tuned.load_state_dict("default", &state, &LoadOptions::default()).unwrap();
        let loaded = tuned.state_dict("default").unwrap();
        assert!(loaded.iter().all(|(_, tensor)| tensor.isfinite().all().int64_value(&[]) == 1));
        let found = net.vs.variables()["norm1.weight"].double_value(&[3]);
        assert!((found / largest - 1.).abs() < 1e-2, "{found}");
    }
}

/// An adapter on a model in f32 or f64 with this value in one weight.
fn written(dir: &std::path::Path, kind: Kind, value: f64) {
    let net = Net::new(kind);
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let state = with(&tuned.state_dict("default").unwrap(), KEY, kind, value);
    tuned.load_state_dict("default", &state, &LoadOptions::default()).unwrap();
    tuned.save_pretrained(dir).unwrap();
}

#[test]
fn a_file_with_a_value_that_the_model_cannot_hold_is_refused() {
    for (file, value, model) in [
        (Kind::Float, 70_000., Kind::Half),
        (Kind::Double, 1e39, Kind::Float),
        (Kind::Double, -1e39, Kind::BFloat16),
    ] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), file, value);
        let net = Net::new(model);
        let before = (snapshot(&net.vs), net.flags());
        let error = LnTuningModel::from_pretrained(&net.vs, dir.path()).unwrap_err();
        check("attached", &error, &[KEY, &value.to_string()]);
        assert_eq!((snapshot(&net.vs), net.flags()), before);
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let error = tuned.load_adapter(dir.path(), "b", &LoadOptions::default()).unwrap_err();
        check("added", &error, &[KEY, &value.to_string()]);
        assert_eq!(tuned.adapters(), ["default"]);
        LnTuningModel::from_pretrained(&Net::new(file).vs, dir.path()).unwrap();
    }
}

#[test]
fn a_move_that_makes_weights_infinite_is_refused_until_the_model_is_moved_back() {
    type Prepare = fn(&Net) -> LnTuningModel;
    let large = |tuned: &mut LnTuningModel, name: &str| {
        let state = with(&tuned.state_dict(name).unwrap(), KEY, Kind::Float, 70_000.);
        tuned.load_state_dict(name, &state, &LoadOptions::default()).unwrap();
    };
    let cases: [(&str, &str, Prepare); 3] = [
        ("in use", "'norm1.weight' of adapter 'default'", |net| {
            LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap()
        }),
        ("not in use", "'norm1.weight' of adapter 'default'", |net| {
            let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
            tuned.add_adapter("b", LnTuningConfig::default().target_modules(["norm2"])).unwrap();
            tuned.set_adapter("b").unwrap();
            tuned
        }),
        ("the base", "'norm2.weight' of the base", |net| {
            tch::no_grad(|| drop(net.vs.variables()["norm2.weight"].get(0).fill_(70_000.)));
            let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
            let state = tuned.state_dict("default").unwrap().into_iter();
            let ones: Vec<_> = state.map(|(key, tensor)| (key, tensor.ones_like())).collect();
            let mut tuned = tuned;
            tuned.load_state_dict("default", &ones, &LoadOptions::default()).unwrap();
            tuned
        }),
    ];
    for (case, words, prepare) in cases {
        let mut net = Net::new(Kind::Float);
        let mut tuned = prepare(&net);
        if case != "the base" {
            large(&mut tuned, "default");
        }
        let names = tuned.adapters();
        let states = |tuned: &LnTuningModel| -> Vec<_> {
            names.iter().map(|name| state_of(tuned, name)).collect()
        };
        let before = (states(&tuned), snapshot(&net.vs));
        net.set_kind(Kind::Half);
        for _ in 0..2 {
            check(case, &tuned.state_dict("default").unwrap_err(), &[words, "70000", "Half"]);
            check(case, &tuned.merge_adapter("default").unwrap_err(), &[words]);
        }
        net.set_kind(Kind::Float);
        tuned.state_dict("default").unwrap();
        assert_eq!(states(&tuned), before.0, "{case}");
        // A kind with a wide range takes them.
        net.set_kind(Kind::BFloat16);
        assert_eq!(states(&tuned), before.0, "{case}");
        tuned.unload().unwrap();
    }
}

#[test]
fn a_sum_of_adapters_that_the_model_cannot_hold_is_refused() {
    for (kind, weight) in [(Kind::Half, 1e6), (Kind::Float, 1e39), (Kind::Double, 1e308)] {
        let net = Net::new(kind);
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let state = tuned.state_dict("default").unwrap().into_iter();
        let state: Vec<_> = state.map(|(key, tensor)| (key, tensor + 100.)).collect();
        tuned.load_state_dict("default", &state, &LoadOptions::default()).unwrap();
        let error = tuned.interpolate(&[("default", weight)], "sum").unwrap_err();
        check("sum", &error, &["norm1."]);
        assert_eq!(tuned.adapters(), ["default"]);
    }
}

#[test]
fn saving_in_the_models_kind_refuses_what_it_cannot_hold_and_the_masters_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Half);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(Sgd::default(), 1e8).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    let options = SaveOptions::default().kind(SaveKind::Model);
    let error = tuned.save_pretrained_with(dir.path(), &options).unwrap_err();
    check("saved", &error, &["norm", "Half"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    tuned.save_pretrained(dir.path()).unwrap();
}

#[test]
fn a_base_directory_is_not_loaded_or_merged_into_a_kind_that_cannot_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
    std::fs::create_dir(&base).unwrap();
    std::fs::write(base.join("config.json"), "{}").unwrap();
    let net = Net::new(Kind::Half);
    net.vs.save(base.join("model.safetensors")).unwrap();
    written(&adapter, Kind::Float, -70_000.);
    let out = dir.path().join("out");
    let error = merge(&base, &adapter, &out, |_, _| {}).unwrap_err();
    check("merged", &error, &[KEY, "-70000", "Half"]);
    assert!(!out.exists());

    let vs = nn::VarStore::new(Device::Cpu);
    let _ = (vs.root() / "norm").var("weight", &[4], nn::Init::Const(70_000.));
    vs.save(base.join("model.safetensors")).unwrap();
    let files = ModelFiles::open(&base).unwrap();
    let error = files.var_store(Device::Cpu, Kind::Half, |_| true).unwrap_err();
    check("loaded", &error, &["norm.weight", "70000", "Half"]);
    files.var_store(Device::Cpu, Kind::BFloat16, |_| true).unwrap();
}
