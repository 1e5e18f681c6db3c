//! Adapters live together: each fault that PEFT's LN tuning has, absent; and what PEFT does not have.

mod nets;

use ln_tuning::{
    AdamW, AdapterOptions, ErrorKind, InterpolateOptions, Interpolation, LnTuningConfig,
    LnTuningModel, LoadOptions, Precision, SaveOptions, Sgd,
};
use nets::{bits, named_bits, snapshot, Net};
use tch::{nn, Device, Kind, Tensor};

fn only(name: &str) -> LnTuningConfig {
    LnTuningConfig::default().target_modules([name])
}

fn state(tuned: &LnTuningModel, name: &str) -> std::collections::BTreeMap<String, nets::Bits> {
    named_bits(&tuned.state_dict(name).unwrap())
}

/// `a` on both norms and the head, trained; `b` on norm2 alone, trained.
fn two(net: &Net) -> LnTuningModel {
    let config = LnTuningConfig::default().modules_to_save(["head"]);
    let mut tuned = LnTuningModel::with_adapter_name(&net.vs, config, "a").unwrap();
    net.train(&tuned, 3);
    tuned.add_adapter("b", only("norm2")).unwrap();
    tuned.set_adapter("b").unwrap();
    net.train(&tuned, 3);
    tuned.set_adapter("a").unwrap();
    tuned
}

#[test]
fn where_the_active_adapter_has_no_weights_the_base_is_used() {
    let net = Net::new(Kind::Float);
    let base = snapshot(&net.vs);
    let mut tuned = two(&net);
    tuned.set_adapter("b").unwrap();
    let now = snapshot(&net.vs);
    for (name, value) in &now {
        assert_eq!(value == &base[name], !name.starts_with("norm2"), "{name}");
    }
    let _ = net.logits();
    tuned.merge_adapter("b").unwrap();
    assert_eq!(snapshot(&net.vs), now);
    tuned.merge_and_unload().unwrap();
    assert_eq!(snapshot(&net.vs), now);
}

#[test]
fn an_adapter_added_while_another_is_merged_starts_from_the_base() {
    let net = Net::new(Kind::Float);
    let base = snapshot(&net.vs);
    let mut tuned = two(&net);
    tuned.merge_adapter("a").unwrap();
    let merged = snapshot(&net.vs);
    tuned.add_adapter("c", LnTuningConfig::default()).unwrap();
    assert_eq!(snapshot(&net.vs), merged, "and the model stays merged");
    for (key, value) in state(&tuned, "c") {
        let name = key.replace("base_model.model.", "").replace(".ln_tuning_layers", "");
        assert_eq!(value, base[&name], "{name}");
    }
}

#[test]
fn adding_an_adapter_moves_no_other() {
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    let addresses = || -> Vec<usize> {
        let mut variables: Vec<_> = net.vs.variables().into_iter().collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        variables.iter().map(|(_, t)| t.data_ptr() as usize).collect()
    };
    let before = (addresses(), snapshot(&net.vs), state(&tuned, "a"), state(&tuned, "b"));
    let devices = tuned.model_status().devices;
    tuned.add_adapter("c", LnTuningConfig::default()).unwrap();
    assert_eq!((addresses(), snapshot(&net.vs), state(&tuned, "a"), state(&tuned, "b")), before);
    let now = tuned.model_status().devices;
    assert!(devices.iter().all(|(name, device)| now[name] == *device));
}

#[test]
fn saving_while_merged_writes_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    let options = SaveOptions::default().selected_adapters(["a"]);
    tuned.save_pretrained_with(dir.path().join("free"), &options).unwrap();
    tuned.merge_adapter("a").unwrap();
    tuned.save_pretrained_with(dir.path().join("merged"), &options).unwrap();
    let file = |folder: &str| {
        std::fs::read(dir.path().join(folder).join("a/adapter_model.safetensors")).unwrap()
    };
    assert!(file("free") == file("merged"));
}

#[test]
fn loading_into_a_merged_adapter_leaves_the_base_alone() {
    let net = Net::new(Kind::Float);
    let base = snapshot(&net.vs);
    let mut tuned = two(&net);
    tuned.merge_adapter("a").unwrap();
    let ones: Vec<(String, Tensor)> = tuned
        .state_dict("a")
        .unwrap()
        .into_iter()
        .map(|(key, tensor)| (key, tensor.ones_like()))
        .collect();
    tuned.load_state_dict("a", &ones, &LoadOptions::default()).unwrap();
    assert_eq!(state(&tuned, "a"), named_bits(&ones));
    assert!(net.vs.variables()["norm1.bias"].double_value(&[0]) == 1., "the merged model has them");
    tuned.unmerge_adapter().unwrap();
    tuned.unload().unwrap();
    assert_eq!(snapshot(&net.vs), base);
}

#[test]
fn unloading_takes_modules_to_save_away_and_merging_leaves_them() {
    let net = Net::new(Kind::Float);
    let (base, names) = (snapshot(&net.vs), net.vs.variables().len());
    let tuned = two(&net);
    let with_a = snapshot(&net.vs);
    assert_ne!(with_a["head.weight"], base["head.weight"]);
    tuned.unload().unwrap();
    assert_eq!(snapshot(&net.vs), base);
    let tuned = two(&net);
    let with_a = snapshot(&net.vs);
    tuned.merge_and_unload().unwrap();
    assert_eq!(snapshot(&net.vs), with_a);
    assert_eq!(net.vs.variables().len(), names, "no wrapper stays behind");
    assert!(net.flags().values().all(|trains| *trains), "and everything trains as before");
}

#[test]
fn merged_weights_do_not_come_back_as_the_base() {
    let net = Net::new(Kind::Float);
    let base = snapshot(&net.vs);
    let mut tuned = two(&net);
    tuned.merge_adapter("a").unwrap();
    tuned.unload().unwrap();
    assert_eq!(snapshot(&net.vs), base);
}

/// Blocks of two linear layers, one with a tensor of its own.
fn blocks() -> nn::VarStore {
    let vs = nn::VarStore::new(Device::Cpu);
    for block in 0..2 {
        let path = vs.root() / "layers" / block / "mlp";
        let _ = nn::linear(&path / "up", 4, 8, Default::default());
        let _ = nn::linear(&path / "down", 8, 4, Default::default());
    }
    let _ = (vs.root() / "layers" / 1 / "mlp").var("scale", &[4], nn::Init::Const(1.));
    vs
}

#[test]
fn containers_are_trained_saved_loaded_and_unloaded() {
    let dir = tempfile::tempdir().unwrap();
    let vs = blocks();
    let base = snapshot(&vs);
    for name in ["default", "mine"] {
        let tuned = LnTuningModel::with_adapter_name(&vs, only("mlp"), name).unwrap();
        let mut opt = tuned.optimizer(Sgd::default(), 0.1).unwrap();
        let sum = vs.variables().values().map(|t| t.square().sum(Kind::Float)).sum::<Tensor>();
        opt.backward_step(&sum).unwrap();
        let trained = snapshot(&vs);
        assert!(trained.iter().all(|(name, value)| *value != base[name] || name.ends_with("bias")));
        tuned.save_pretrained(dir.path()).unwrap();
        tuned.unload().unwrap();
        assert_eq!(snapshot(&vs), base);
        let saved = dir.path().join(if name == "default" { "" } else { name });
        // Under the same name and under another.
        for again in [name, "other"] {
            let options = LoadOptions::default();
            let (tuned, report) =
                LnTuningModel::from_pretrained_with(&vs, &saved, again, &options).unwrap();
            assert_eq!(report, Default::default());
            assert_eq!(snapshot(&vs), trained, "{name} as {again}");
            tuned.unload().unwrap();
        }
    }
}

#[test]
fn no_file_holds_the_keys_of_another_adapter_and_none_are_lost_to_a_name_in_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    for name in ["b", "default", "ln_tuning_layers"] {
        let _ = nn::layer_norm(vs.root() / "enc" / name / "norm", vec![4], Default::default());
    }
    let names = ["x", "b", "norm", "weight", "enc", "efaul", "default2", "ln_tuning_layers"];
    let mut tuned = LnTuningModel::with_adapter_name(&vs, only("norm"), names[0]).unwrap();
    for name in &names[1..] {
        tuned.add_adapter(name, only("norm")).unwrap();
    }
    tuned.save_pretrained(dir.path()).unwrap();
    for name in names {
        let tensors =
            Tensor::read_safetensors(dir.path().join(name).join("adapter_model.safetensors"))
                .unwrap();
        assert_eq!(tensors.len(), 6, "{name}");
        let own = tensors.iter().all(|(key, _)| {
            key.ends_with("norm.ln_tuning_layers.weight")
                || key.ends_with("norm.ln_tuning_layers.bias")
        });
        assert!(own, "{name}");
        let report = tuned.load_adapter(
            dir.path().join(name),
            &format!("{name}-again"),
            &LoadOptions::default(),
        );
        assert_eq!(report.unwrap(), Default::default(), "{name}");
    }
}

#[test]
fn loading_for_inference_freezes_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    tuned.save_pretrained(dir.path()).unwrap();
    let (flags, before) = (net.flags(), snapshot(&net.vs));
    tuned.load_adapter(dir.path().join("b"), "c", &LoadOptions::default()).unwrap();
    assert_eq!(net.flags(), flags);
    assert_eq!(tuned.active_adapter().as_deref(), Some("a"));
    net.train(&tuned, 1);
    assert_ne!(snapshot(&net.vs), before, "what was in training still trains");
}

#[test]
fn an_adapter_for_inference_stays_frozen_when_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    tuned.save_pretrained(dir.path()).unwrap();
    tuned.load_adapter(dir.path().join("b"), "c", &LoadOptions::default()).unwrap();
    tuned.set_adapter("c").unwrap();
    assert!(net.flags().values().all(|trains| !trains));
    tuned.with_disabled(|| ()).unwrap();
    assert!(net.flags().values().all(|trains| !trains), "disabling and enabling thaws nothing");
    let error = tuned.optimizer(AdamW::default(), 1e-3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert_eq!(tuned.trainable_parameters().trainable, 0);
    tuned.set_requires_grad("c", true).unwrap();
    tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    // Switching away and back keeps the choice.
    tuned.set_requires_grad("c", false).unwrap();
    tuned.set_adapter("a").unwrap();
    tuned.set_adapter("c").unwrap();
    assert!(!tuned.model_status().requires_grad["c"]);
}

#[test]
fn several_adapters_at_once_are_an_error() {
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    let before = snapshot(&net.vs);
    for names in ["a,b", "a b", "[\"a\", \"b\"]"] {
        assert_eq!(tuned.set_adapter(names).unwrap_err().kind(), ErrorKind::UnknownAdapter);
        assert_eq!(tuned.merge_adapter(names).unwrap_err().kind(), ErrorKind::UnknownAdapter);
    }
    assert_eq!(snapshot(&net.vs), before);
}

#[test]
fn merging_an_adapter_that_is_not_active_is_an_error() {
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    let before = snapshot(&net.vs);
    assert_eq!(tuned.merge_adapter("b").unwrap_err().kind(), ErrorKind::InvalidState);
    assert_eq!(snapshot(&net.vs), before);
    tuned.merge_adapter("a").unwrap();
    // While merged: no other, not again, no deleting, no disabling, no training.
    for error in [
        tuned.merge_adapter("b").unwrap_err(),
        tuned.merge_adapter("a").unwrap_err(),
        tuned.set_adapter("b").unwrap_err(),
        tuned.delete_adapter("a").unwrap_err(),
        tuned.disable().map(drop).unwrap_err(),
        tuned.optimizer(AdamW::default(), 1e-3).map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(error.to_string().contains("unmerge_adapter"), "{error}");
    }
    assert_eq!(snapshot(&net.vs), before);
}

#[test]
fn a_duplicate_name_is_an_error_that_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let mut tuned = two(&net);
    tuned.save_pretrained(dir.path()).unwrap();
    let before = (snapshot(&net.vs), state(&tuned, "a"), state(&tuned, "b"));
    for error in [
        tuned.add_adapter("a", only("norm1")).unwrap_err(),
        tuned.load_adapter(dir.path().join("b"), "a", &LoadOptions::default()).unwrap_err(),
        tuned.interpolate(&[("a", 1.)], "b").unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::DuplicateAdapter);
    }
    assert_eq!((snapshot(&net.vs), state(&tuned, "a"), state(&tuned, "b")), before);
}

#[test]
fn deleting_the_active_adapter_leaves_the_base() {
    let net = Net::new(Kind::Float);
    let base = snapshot(&net.vs);
    let mut tuned = two(&net);
    tuned.delete_adapter("a").unwrap();
    assert_eq!((snapshot(&net.vs), tuned.active_adapter()), (base, None));
    assert_eq!(tuned.adapters(), ["b"]);
    tuned.set_adapter("b").unwrap();
    tuned.delete_adapter("b").unwrap();
    let _ = net.logits();
    assert!(tuned.adapters().is_empty());
}

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
            assert_eq!(state(&tuned, &name("a")), state(&tuned, "a"), "{method:?}");
            assert_eq!(state(&tuned, &name("b")), state(&tuned, "b"), "{method:?}");
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
    assert_eq!(state(&tuned, "c"), state(&tuned, "d"));
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
    assert!(layers[0].saved && !layers[1].saved);
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
