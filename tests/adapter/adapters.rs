//! Adapters together: combinations, differences, status, banks.

use crate::nets::{bits, state_of, two, Net};
use ln_tuning::{
    AdapterOptions, ErrorKind, InterpolateOptions, Interpolation, LnTuningConfig, LnTuningModel,
    LoadOptions, Precision, Role, SaveOptions,
};
use tch::{nn, Device, Kind, Tensor};

#[test]
fn a_mean_of_one_is_that_one_and_of_two_lies_between() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let net = Net::new(kind);
        let mut tuned =
            LnTuningModel::with_adapter_name(&net.vs, LnTuningConfig::default(), "a").unwrap();
        net.train(&tuned, 3);
        tuned.add_adapter("b", LnTuningConfig::default()).unwrap();
        tuned.set_adapter("b").unwrap();
        net.train(&tuned, 7);
        for method in [Interpolation::Linear, Interpolation::Spherical] {
            let options = InterpolateOptions::default().method(method);
            let name = |text: &str| format!("{text}-{method:?}");
            tuned.interpolate_with(&[("a", 1.), ("b", 0.)], &name("a"), &options).unwrap();
            tuned.interpolate_with(&[("a", 0.), ("b", 1.)], &name("b"), &options).unwrap();
            tuned.interpolate_with(&[("a", 0.5), ("b", 0.5)], &name("mean"), &options).unwrap();
            assert_eq!(state_of(&tuned, &name("a")), state_of(&tuned, "a"), "{method:?}");
            assert_eq!(state_of(&tuned, &name("b")), state_of(&tuned, "b"), "{method:?}");
            let mean = tuned.state_dict(&name("mean")).unwrap();
            for (((key, mean), (_, a)), (_, b)) in
                mean.iter().zip(tuned.state_dict("a").unwrap()).zip(tuned.state_dict("b").unwrap())
            {
                let middle = (&a + &b) * 0.5;
                let off = (mean - middle).abs().max().double_value(&[]);
                match method {
                    Interpolation::Linear => assert!(off < 1e-7, "{key}: {off}"),
                    _ => assert!(off > 0., "{key} lies on an arc"),
                }
            }
        }
        // The arc keeps the length of what was learnt, where the line cuts it short.
        let length = |tuned: &LnTuningModel, name: &str| {
            let diff = tuned.diff(name, None).unwrap();
            diff.tensors.iter().map(|t| t.norm).fold(0., f64::max)
        };
        assert!(length(&tuned, "mean-Spherical") > length(&tuned, "mean-Linear"));
    }
}

#[test]
fn adapters_of_different_modules_are_combined_only_on_request() {
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    let error = tuned.interpolate(&[("a", 0.5), ("b", 0.5)], "c").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SelectionsDiffer);
    assert_eq!(tuned.adapters(), ["a", "b"]);
    let options = InterpolateOptions::default().fall_back_to_base(true);
    tuned.interpolate_with(&[("a", 0.25), ("b", 0.75)], "c", &options).unwrap();
    let value = |tuned: &LnTuningModel, adapter: &str, end: &str| {
        let state = tuned.state_dict(adapter).unwrap().into_iter();
        let found = state.into_iter().find(|(key, _)| key.ends_with(end)).unwrap();
        found.1.view([-1]).double_value(&[0])
    };
    // norm1 is the base's in b: a quarter of the way from 1.
    let a = value(&tuned, "a", "norm1.ln_tuning_layers.weight");
    let c = value(&tuned, "c", "norm1.ln_tuning_layers.weight");
    assert!((c - (1. + 0.25 * (a - 1.))).abs() < 1e-6);
    assert!(value(&tuned, "c", "head.weight") != value(&tuned, "a", "head.weight"));
    let dir = tempfile::tempdir().unwrap();
    tuned
        .save_pretrained_with(dir.path(), &SaveOptions::default().selected_adapters(["c"]))
        .unwrap();
    tuned.load_adapter(dir.path().join("c"), "d", &LoadOptions::default()).unwrap();
    assert_eq!(state_of(&tuned, "c"), state_of(&tuned, "d"));
}

#[test]
fn weights_that_make_no_mean_are_refused() {
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    let arc = InterpolateOptions::default().method(Interpolation::Spherical);
    for (weights, options) in [
        (vec![], InterpolateOptions::default()),
        (vec![("a", f64::NAN)], InterpolateOptions::default()),
        (vec![("a", 1.)], arc.clone()),
        (vec![("a", 1.), ("a", -0.5)], arc.clone()),
        (vec![("a", 0.), ("a", 0.)], arc),
    ] {
        let error = tuned.interpolate_with(&weights, "c", &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{weights:?}");
    }
    assert_eq!(
        tuned.interpolate(&[("nope", 1.)], "c").unwrap_err().kind(),
        ErrorKind::UnknownAdapter
    );
    assert_eq!(
        tuned.interpolate(&[("a", 1.)], "c.d").unwrap_err().kind(),
        ErrorKind::InvalidAdapterName
    );
    assert_eq!(tuned.adapters(), ["a", "b"]);
}

#[test]
fn a_difference_says_how_far_each_tensor_is_and_where() {
    let vs = nn::VarStore::new(Device::Cpu);
    for layer in 0..3 {
        let _ = nn::layer_norm(vs.root() / "layers" / layer / "norm", vec![4], Default::default());
    }
    let _ = nn::layer_norm(vs.root() / "last_norm", vec![4], Default::default());
    let mut tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let still = tuned.diff("default", None).unwrap();
    assert_eq!(still.tensors.len(), 8);
    assert!(still.tensors.iter().all(|t| t.norm == 0. && t.max_abs == 0.));
    let mut changed = tuned.state_dict("default").unwrap();
    let (_, weight) = changed
        .iter_mut()
        .find(|(key, _)| key.contains("layers.1") && key.ends_with("weight"))
        .unwrap();
    *weight = Tensor::from_slice(&[1f32, 1., 4., 1.]);
    let (_, bias) = changed
        .iter_mut()
        .find(|(key, _)| key.contains("layers.2") && key.ends_with("bias"))
        .unwrap();
    *bias = Tensor::from_slice(&[0f32, -0.5, 0., 0.]);
    tuned.load_state_dict("default", &changed, &LoadOptions::default()).unwrap();

    let diff = tuned.diff("default", None).unwrap();
    let order: Vec<String> =
        diff.tensors.iter().map(|t| format!("{}.{}", t.module, t.tensor)).collect();
    assert_eq!(&order[..3], ["last_norm.weight", "last_norm.bias", "layers.0.norm.weight"]);
    let of = |name: &str| &diff.tensors[order.iter().position(|n| n == name).unwrap()];
    let weight = of("layers.1.norm.weight");
    // 3 on one of four elements, against a length of 2.
    assert_eq!((weight.norm, weight.max_abs, weight.max_index, weight.rms()), (3., 3., 2, 1.5));
    assert_eq!(weight.relative_norm, Some(1.5));
    let bias = of("layers.2.norm.bias");
    assert_eq!((bias.norm, bias.max_index, bias.relative_norm), (0.5, 1, None));
    let text = diff.to_string();
    assert!(text.contains("layers.1.norm.weight") && text.contains("150.000 %"), "{text}");
    assert_eq!(tuned.diff("default", "nope").unwrap_err().kind(), ErrorKind::UnknownAdapter);

    // The other way round it is as far.
    tuned.add_adapter("fresh", LnTuningConfig::default()).unwrap();
    let back = tuned.diff("fresh", "default").unwrap();
    assert!(back.tensors.iter().zip(&diff.tensors).all(|(a, b)| a.norm == b.norm));
    let picture = diff.heat_map().unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("layers.*.norm.weight"));
    // A title, a scale, four rows, three depths; a frame and a filling for each of eight cells.
    assert_eq!(picture.matches("<rect").count(), 1 + 2 * 8);
}

#[test]
fn the_status_says_per_module_what_is_used() {
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    tuned.set_adapter("b").unwrap();
    let layers = tuned.layer_status();
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, ["head", "norm1", "norm2"]);
    assert_eq!(layers[1].active_adapter, None, "norm1 is the base's");
    assert_eq!(layers[2].active_adapter.as_deref(), Some("b"));
    assert_eq!(layers[2].available_adapters, ["a", "b"]);
    assert_eq!((layers[0].role, layers[1].role), (Role::Whole, Role::Tuned));
    assert!(layers.iter().all(|layer| layer.devices.values().all(|d| *d == Device::Cpu)));
    let status = tuned.model_status();
    assert_eq!((status.num_adapter_layers, status.enabled), (3, true));
    assert_eq!(status.parameters, tuned.trainable_parameters());
    tuned.merge_adapter("b").unwrap();
    let status = tuned.model_status();
    assert_eq!(status.merged_adapter.as_deref(), Some("b"));
    assert_eq!(tuned.layer_status()[1].merged_adapter, None);
    tuned.unmerge_adapter().unwrap();
    let guard = tuned.disable().unwrap();
    drop(guard);
    assert!(tuned.model_status().enabled);
}

#[test]
fn disabling_shows_the_base_and_enabling_the_adapter() {
    let net = Net::new(Kind::BFloat16);
    let base = bits(&net.logits());
    let mut tuned = two(&net);
    let (with_a, flags) = (bits(&net.logits()), net.flags());
    assert_ne!(base, with_a);
    let inside = tuned.with_disabled(|| bits(&net.logits())).unwrap();
    assert_eq!(inside, base);
    assert_eq!((bits(&net.logits()), net.flags()), (with_a, flags));
}

#[test]
fn adapters_are_enabled_again_after_a_guard_was_forgotten() {
    let net = Net::new(Kind::BFloat16);
    let base = bits(&net.logits());
    let mut tuned = two(&net);
    let (with_a, flags) = (bits(&net.logits()), net.flags());
    for _ in 0..2 {
        std::mem::forget(tuned.disable().unwrap());
    }
    assert_eq!(bits(&net.logits()), base);
    let error = tuned.optimizer(ln_tuning::AdamW::default(), 1e-3).unwrap_err();
    assert!(error.to_string().contains("`enable`"), "{error}");
    tuned.set_adapter("b").unwrap();
    tuned.set_adapter("a").unwrap();
    assert_eq!(
        bits(&net.logits()),
        base,
        "another adapter is set, but none is enabled, as in PEFT"
    );
    tuned.enable().unwrap();
    assert_eq!((bits(&net.logits()), net.flags()), (with_a, flags));
    assert!(tuned.model_status().enabled);
    tuned.enable().unwrap();
    net.train(&tuned, 1);
}

#[test]
fn hundreds_of_adapters_are_resident_and_each_is_itself() {
    let net = Net::new(Kind::BFloat16);
    let mut tuned =
        LnTuningModel::with_adapter_name(&net.vs, LnTuningConfig::default(), "0").unwrap();
    for index in 1..300 {
        tuned.add_adapter(&index.to_string(), LnTuningConfig::default()).unwrap();
    }
    for index in 0..300 {
        let name = index.to_string();
        let filled = tuned.state_dict(&name).unwrap().into_iter();
        let filled: Vec<_> = filled.map(|(key, t)| (key, t.full_like(index as f64))).collect();
        tuned.load_state_dict(&name, &filled, &LoadOptions::default()).unwrap();
    }
    for index in [299, 0, 150, 7, 298] {
        tuned.set_adapter(&index.to_string()).unwrap();
        let expected = Tensor::from(index as f64).to_kind(Kind::BFloat16).double_value(&[]);
        assert_eq!(net.vs.variables()["norm2.bias"].double_value(&[3]), expected);
    }
}

#[test]
fn adapters_of_both_precisions_live_on_one_base() {
    let net = Net::new(Kind::BFloat16);
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let options = AdapterOptions::default().precision(Precision::Model);
    tuned.add_adapter_with("bf16", LnTuningConfig::default(), &options).unwrap();
    let kind = |tuned: &LnTuningModel, name: &str| tuned.state_dict(name).unwrap()[0].1.kind();
    assert_eq!((kind(&tuned, "default"), kind(&tuned, "bf16")), (Kind::Float, Kind::BFloat16));
    net.train(&tuned, 2);
    tuned.set_adapter("bf16").unwrap();
    net.train(&tuned, 2);
    assert!(net.logits().isfinite().all().int64_value(&[]) == 1);
}
