//! The cost over the number of variables, and the length of messages.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions};
use tch::nn::{Init, VarStore};
use tch::{Device, Kind, Tensor};

type Names = fn(usize) -> String;

/// The time for which this thread has had a processor, since other tests run beside this one.
fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let told = told.and_then(|text| text.split(' ').next()?.parse().ok());
    told.map_or_else(|| START.get_or_init(Instant::now).elapsed(), Duration::from_nanos)
}

/// A norm per module; libtorch's share of the time is small.
fn base(count: usize, name: Names) -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    for index in 0..count {
        let name = name(index);
        let path = name.split('.').fold(vs.root(), |path, segment| path / segment);
        let _ = path.var("weight", &[1], Init::Const(1.));
    }
    vs
}

/// Everything that a user does with an adapter.
fn everything(vs: &VarStore) -> Duration {
    let start = now();
    let dir = tempfile::tempdir().unwrap();
    let mut tuned = LnTuningModel::new(vs, LnTuningConfig::default()).unwrap();
    tuned.add_adapter("b", LnTuningConfig::default().target_pattern(".*norm.*")).unwrap();
    tuned.set_adapter("b").unwrap();
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let loss = Tensor::stack(&optimizer.trainable_variables().unwrap(), 0).sum(Kind::Float);
    optimizer.backward_step(&loss).unwrap();
    let state = tuned.state_dict("b").unwrap();
    tuned.load_state_dict("default", &state, &LoadOptions::default()).unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    tuned.load_adapter(dir.path(), "c", &LoadOptions::default()).unwrap();
    tuned.diff("c", "b").unwrap();
    tuned.interpolate(&[("b", 0.5), ("c", 0.5)], "d").unwrap();
    tuned.layer_status();
    tuned.merge_adapter("b").unwrap();
    tuned.unmerge_adapter().unwrap();
    tuned.unload().unwrap();
    now() - start
}

#[test]
fn four_times_the_variables_take_about_four_times_as_long() {
    tch::set_num_threads(1);
    let trees: [(&str, Names); 4] = [
        ("blocks", |i| format!("layers.{i}.norm")),
        ("numbers in the names", |i| format!("norm{i}")),
        ("numbers twice", |i| format!("layers.{i}.norm{i}")),
        ("in one container", |i| format!("model.norms.{i}")),
    ];
    for (case, name) in trees {
        let (few, many) = (base(300, name), base(1_200, name));
        // Others use the caches too: one quiet run of each suffices.
        let ratio = || everything(&many).as_secs_f64() / everything(&few).as_secs_f64();
        let ratios: Vec<f64> = (0..5).map(|_| ratio()).take_while(|ratio| *ratio > 6.).collect();
        assert!(ratios.len() < 5, "{case}: {ratios:?}");
    }
}

#[test]
fn names_of_one_tensor_cost_the_same_each() {
    let vs = VarStore::new(Device::Cpu);
    let weight = (vs.root() / "norm").var("weight", &[1], Init::Const(1.));
    for index in 0..2_000 {
        let _ = (vs.root() / format!("norm{index}")).add("weight", weight.shallow_clone(), true);
    }
    let start = now();
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    assert_eq!(tuned.trainable_parameters().trainable, 1);
    assert_eq!(tuned.state_dict("default").unwrap().len(), 2_001);
    assert!((now() - start).as_secs() < 5, "{:?}", now() - start);
}

#[test]
fn a_deep_path_costs_little_more_than_a_short_one() {
    let vs = base(1, |_| format!("{}norm", "a.".repeat(1_000)));
    let start = now();
    let config = LnTuningConfig::default;
    LnTuningModel::new(&vs, config()).unwrap();
    LnTuningModel::new(&vs, config().target_modules(["nrom"])).unwrap_err();
    assert!((now() - start).as_secs() < 3, "{:?}", now() - start);
}

#[test]
fn a_message_is_short_and_soon_there_whatever_the_names_are() {
    let vs = base(1_000, |i| format!("layers.{i}.norm{i}"));
    let long = "norm".repeat(2_500);
    let wrong: Vec<String> = (0..200).map(|index| format!("layers.{index}.nrom{long}")).collect();
    let config = LnTuningConfig::default;
    let mut tuned = LnTuningModel::new(&vs, config()).unwrap();
    for index in 0..20 {
        tuned.add_adapter(&format!("a{index}"), config()).unwrap();
    }
    let start = now();
    let state: Vec<_> = wrong.iter().map(|key| (key.clone(), Tensor::from(1f32))).collect();
    let options = LoadOptions::default();
    for (error, kind, word) in [
        (
            tuned.add_adapter("x", config().target_modules(&wrong)).unwrap_err(),
            ErrorKind::NoMatchingModules,
            "and 195 more",
        ),
        (
            tuned.add_adapter("x", config().target_pattern(&long)).unwrap_err(),
            ErrorKind::NoMatchingModules,
            "…",
        ),
        (
            tuned.add_adapter("x", config().modules_to_save([&long])).unwrap_err(),
            ErrorKind::NoMatchingModules,
            "…",
        ),
        (
            LnTuningConfig::from_json(&format!(r#"{{"peft_type": "{long}"}}"#)).unwrap_err(),
            ErrorKind::WrongPeftType,
            "…",
        ),
        (tuned.set_adapter(&long).unwrap_err(), ErrorKind::UnknownAdapter, "and 16 more"),
        (tuned.add_adapter(&long, config()).unwrap_err(), ErrorKind::InvalidAdapterName, "…"),
        (
            tuned.load_state_dict("a1", &state, &options.clone().allow_missing(true)).unwrap_err(),
            ErrorKind::UnexpectedKeys,
            "200 tensors",
        ),
        (
            tuned.load_state_dict("a1", &state, &options).unwrap_err(),
            ErrorKind::MissingKeys,
            "1000",
        ),
    ] {
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.len() < 1_500 && text.contains(word), "{} bytes: {text}", text.len());
    }
    assert!((now() - start).as_secs() < 10, "{:?}", now() - start);
}
