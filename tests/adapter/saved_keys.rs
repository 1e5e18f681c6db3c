//! Keys of saved adapters: none are lost, and none are taken for those of another module or adapter.

use crate::nets::{only, snapshot, Net};
use ln_tuning::{ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, SaveOptions, Sgd};
use tch::{nn, Device, Kind, Tensor};

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
