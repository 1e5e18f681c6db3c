//! Each known fault of PEFT's LN tuning, absent.

use crate::nets::{named_bits, only, snapshot, state_of, two, Net};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, SaveOptions, Sgd};
use tch::{nn, Device, Kind, Tensor};

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
    for (key, value) in state_of(&tuned, "c") {
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
    let before = (addresses(), snapshot(&net.vs), state_of(&tuned, "a"), state_of(&tuned, "b"));
    let devices = tuned.model_status().devices;
    tuned.add_adapter("c", LnTuningConfig::default()).unwrap();
    assert_eq!(
        (addresses(), snapshot(&net.vs), state_of(&tuned, "a"), state_of(&tuned, "b")),
        before
    );
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
    assert_eq!(state_of(&tuned, "a"), named_bits(&ones));
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

/// Paths that hold the words of PEFT's keys, in containers and alone.
#[test]
fn modules_named_like_parts_of_a_key_come_back_as_they_were_saved() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["q", "default.q", "mine.q", "modules_to_save.default.q", "ln_tuning_layers.q"];
    let made = || {
        let vs = nn::VarStore::new(Device::Cpu);
        for (at, path) in paths.iter().enumerate() {
            let place = path.split('.').fold(vs.root() / "c", |place, name| place / name);
            let _ = place.var("weight", &[4], nn::Init::Const(at as f64));
        }
        vs
    };
    let whole = paths[1..].iter().map(|path| format!("c.{path}"));
    let whole = LnTuningConfig::default().target_pattern(r"c\.q").modules_to_save(whole);
    for config in [only("c"), only("q"), whole] {
        for name in ["default", "mine"] {
            let vs = made();
            let saved = dir.path().join(name);
            let tuned = LnTuningModel::with_adapter_name(&vs, config.clone(), "default").unwrap();
            for (at, variable) in vs.variables().into_values().enumerate() {
                let _ = tch::no_grad(|| variable.shallow_clone().fill_(at as f64 + 10.));
            }
            let trained = snapshot(&vs);
            tuned.save_pretrained(&saved).unwrap();
            let other = made();
            let options = LoadOptions::default();
            let (_, report) =
                LnTuningModel::from_pretrained_with(&other, &saved, name, &options).unwrap();
            assert_eq!(report, Default::default());
            assert_eq!(snapshot(&other), trained, "{config:?} as {name}");
        }
    }
}

#[test]
fn a_key_mapping_on_saving_keeps_paths_apart_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, only("norm1").modules_to_save(["head", "norm2"]));
    let tuned = tuned.unwrap();
    for (rule, kind, named) in [
        (("^(norm1|norm2|head)$", "one"), None, "'one'"),
        (("^head$", "norm2"), Some(ErrorKind::DuplicateKey), "'norm2.bias'"),
        (("^norm1$", ""), Some(ErrorKind::InvalidArgument), "'norm1'"),
        (("norm1", "a..b"), Some(ErrorKind::InvalidArgument), "'a..b'"),
        (("norm1", ".a"), Some(ErrorKind::InvalidArgument), "'.a'"),
        (("(norm1", "a"), Some(ErrorKind::InvalidPattern), "key_mapping"),
    ] {
        let options = SaveOptions::default().key_mapping([rule]);
        let error = tuned.save_pretrained_with(dir.path(), &options).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), kind.unwrap_or(ErrorKind::DuplicateKey), "{rule:?}: {text}");
        assert!(text.contains(named) || kind.is_none(), "{rule:?}: {text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{rule:?}");
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
    let before = (snapshot(&net.vs), state_of(&tuned, "a"), state_of(&tuned, "b"));
    for error in [
        tuned.add_adapter("a", only("norm1")).unwrap_err(),
        tuned.load_adapter(dir.path().join("b"), "a", &LoadOptions::default()).unwrap_err(),
        tuned.interpolate(&[("a", 1.)], "b").unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::DuplicateAdapter);
    }
    assert_eq!((snapshot(&net.vs), state_of(&tuned, "a"), state_of(&tuned, "b")), before);
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

/// Adapters saved from wrapped models: the error says what there is, and its cure is one.
#[test]
fn keys_with_the_names_of_wrappers_are_shown_with_a_mapping_that_works() {
    let net = Net::new(Kind::Float);
    let config = || only("norm1").modules_to_save(["head"]);
    let tuned = LnTuningModel::new(&net.vs, config()).unwrap();
    let state = tuned.state_dict("default").unwrap();
    let prefix = "base_model.model.";
    for (before, after) in [
        (prefix, "base_model.model._orig_mod."),
        (prefix, "module.base_model.model."),
        (prefix, "module._orig_mod.base_model.model."),
        ("norm1", "_checkpoint_wrapped_module.norm1"),
        (prefix, "base_model.model._fsdp_wrapped_module."),
        (prefix, "old."),
    ] {
        let renamed = |(key, tensor): &(String, Tensor)| {
            (key.replacen(before, after, 1), tensor.shallow_clone())
        };
        let wrapped: Vec<_> = state.iter().map(renamed).collect();
        let other = Net::new(Kind::Float);
        let mut model = LnTuningModel::new(&other.vs, config()).unwrap();
        let load = LoadOptions::default();
        let error = model.load_state_dict("default", &wrapped, &load).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::MissingKeys, "{text}");
        assert!(wrapped.iter().any(|(key, _)| text.contains(key.as_str())), "{text}");
        let Some((_, rest)) = text.split_once("[(r\"") else {
            assert_eq!(after, "old.", "{text}");
            continue;
        };
        let load = load.key_mapping([(rest.split_once('"').unwrap().0, "")]);
        let report = model.load_state_dict("default", &wrapped, &load);
        assert_eq!(report.unwrap(), Default::default(), "{after}: {text}");
    }
}

#[test]
fn a_directory_above_an_adapter_is_refused_with_the_folders_below() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::with_adapter_name(&net.vs, only("norm1"), "poetry").unwrap();
    tuned.save_pretrained(dir.path().join("run/adapter")).unwrap();
    tuned.unload().unwrap();
    for above in ["run/adapter", "run", "."] {
        let error = LnTuningModel::from_pretrained(&net.vs, dir.path().join(above)).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::MissingFile, "{text}");
        assert!(text.contains("run/adapter/poetry'"), "{text}");
    }
    let file = dir.path().join("run/adapter/poetry/adapter_model.safetensors");
    let error = LnTuningModel::from_pretrained(&net.vs, file).unwrap_err().to_string();
    assert!(error.contains("expected the directory"), "{error}");
}
