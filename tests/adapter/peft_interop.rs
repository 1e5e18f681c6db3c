//! Adapters go to PEFT and come from it, unchanged, without a warning.

use std::path::Path;

use crate::common;
use crate::nets::{self, named_bits, snapshot};
use ln_tuning::{AdapterOptions, LnTuningConfig, LnTuningModel, LoadOptions};
use tch::{nn, Device, Tensor};

/// A VarStore with one variable per tensor of a file: the names and shapes are all that an adapter needs.
fn var_store(path: &Path) -> nn::VarStore {
    let vs = nn::VarStore::new(Device::Cpu);
    for (name, tensor) in Tensor::read_safetensors(path).unwrap() {
        let mut segments: Vec<&str> = name.split('.').collect();
        let last = segments.pop().unwrap();
        let path = segments.iter().fold(vs.root(), |path, segment| path / *segment);
        let _ = path.var_copy(last, &tensor);
    }
    vs
}

#[test]
fn adapters_pass_to_peft_and_back_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    common::run_python("interop.py", &["make", root]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let vs = var_store(&case.join("base.safetensors"));
        let before = snapshot(&vs);
        let options = LoadOptions::default()
            .is_trainable(true)
            .adapter(AdapterOptions::default().model_type("llama"));
        let (mut tuned, report) =
            LnTuningModel::from_pretrained_with(&vs, case.join("peft"), "default", &options)
                .unwrap();
        assert_eq!(report, Default::default(), "{case:?}");
        let facts: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(case.join("facts.json")).unwrap())
                .unwrap();
        let parameters = tuned.trainable_parameters();
        assert_eq!(
            (facts["trainable"].as_u64(), facts["total"].as_u64()),
            (Some(parameters.trainable), Some(parameters.total))
        );

        // Saved again: PEFT's file byte for byte, but for containers, whose keys no release of PEFT 0.19 reads back.
        tuned.save_pretrained(case.join("again")).unwrap();
        let file =
            |dir: &str| std::fs::read(case.join(dir).join("adapter_model.safetensors")).unwrap();
        if !case.ends_with("container") {
            assert!(file("again") == file("peft"), "{case:?}");
        }
        vs.save(case.join("ours_merged.safetensors")).unwrap();

        // Made here, by the same settings: the same keys.
        let asked = LnTuningConfig::from_file(case.join("asked.json")).unwrap();
        let fresh = var_store(&case.join("base.safetensors"));
        let options = AdapterOptions::default().model_type("llama");
        let fresh = LnTuningModel::with_options(&fresh, asked, "default", &options).unwrap();
        let keys = |model: &LnTuningModel| -> Vec<String> {
            model.state_dict("default").unwrap().into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(&fresh), keys(&tuned), "{case:?}");

        // Saved, loaded, saved: the same bytes in every file.
        let vs2 = var_store(&case.join("base.safetensors"));
        let second = LnTuningModel::from_pretrained(&vs2, case.join("again")).unwrap();
        second.save_pretrained(case.join("third")).unwrap();
        for name in ["adapter_model.safetensors", "adapter_config.json", "README.md"] {
            let read = |dir: &str| std::fs::read(case.join(dir).join(name)).unwrap();
            assert!(read("again") == read("third"), "{case:?} {name}");
        }
        assert_eq!(
            named_bits(&second.state_dict("default").unwrap()),
            named_bits(&tuned.state_dict("default").unwrap())
        );

        // Other weights, made here.
        let changed: Vec<(String, Tensor)> = tuned
            .state_dict("default")
            .unwrap()
            .into_iter()
            .map(|(key, tensor)| (key, tensor * 0.5 + 0.25))
            .collect();
        tuned.load_state_dict("default", &changed, &LoadOptions::default()).unwrap();
        tuned.save_pretrained(case.join("ours")).unwrap();
        vs.save(case.join("ours_weights.safetensors")).unwrap();
        tuned.unload().unwrap();
        assert_eq!(snapshot(&vs), before);
        cases += 1;
    }
    assert_eq!(cases, 13);
    let checked = common::run_python("interop.py", &["check", root]);
    assert_eq!(checked.lines().filter(|line| line.ends_with(" ok")).count(), cases, "{checked}");
}

#[test]
fn a_state_dict_has_the_keys_of_peft_in_the_order_of_the_model() {
    let net = nets::Net::new(tch::Kind::Float);
    let config = LnTuningConfig::default().modules_to_save(["head"]);
    let tuned = LnTuningModel::new(&net.vs, config).unwrap();
    let keys: Vec<String> =
        tuned.state_dict("default").unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "base_model.model.head.bias",
            "base_model.model.head.weight",
            "base_model.model.norm1.ln_tuning_layers.bias",
            "base_model.model.norm1.ln_tuning_layers.weight",
            "base_model.model.norm2.ln_tuning_layers.bias",
            "base_model.model.norm2.ln_tuning_layers.weight",
        ]
    );
}
