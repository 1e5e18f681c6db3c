//! Adapters that have a part of tied embeddings: as in PEFT, each module is trained apart, and the rest keeps the
//! base's.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use crate::nets::snapshot;
use ln_tuning::models::{AnyModel, Inputs};
use ln_tuning::{merge, pretrained, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, Sgd};
use tch::{nn, no_grad, Device, Kind, Tensor};

type Reference = HashMap<String, Tensor>;

fn open(dir: &Path) -> (nn::VarStore, AnyModel) {
    AnyModel::from_pretrained(dir, Device::Cpu, None).unwrap()
}

fn logits(model: &AnyModel, reference: &Reference) -> Tensor {
    let mut inputs = Inputs::new(&reference["input_ids"]);
    if let Some(ids) = reference.get("decoder_input_ids") {
        inputs = inputs.decoder_ids(ids);
    }
    model.logits(inputs).unwrap()
}

fn check(model: &AnyModel, reference: &Reference, name: &str, case: &Path) {
    let found = no_grad(|| logits(model, reference));
    let difference = (found - &reference[name]).abs().max().double_value(&[]);
    assert!(difference < 2e-5, "{case:?}: {name} differs by {difference}");
}

#[test]
fn a_tied_module_is_trained_saved_and_merged_apart_from_its_copies_as_in_peft() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    common::run_python("tied.py", &["make", root]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: Reference =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let (mut vs, model) = open(&case.join("base"));
        let before = snapshot(&vs);
        check(&model, &reference, "base", &case);
        let options = LoadOptions::default().is_trainable(true);
        let attach = |vs: &nn::VarStore| {
            LnTuningModel::from_pretrained_with(vs, case.join("adapter"), "default", &options)
        };
        let (mut tuned, report) = attach(&vs).unwrap();
        // PEFT adds copies of the base to some targeted embeddings.
        assert!(report.foreign_keys.iter().all(|key| key.ends_with(".base_layer.weight")));
        assert_eq!(report.missing_keys.len() + report.unexpected_keys.len(), 0, "{report:?}");
        check(&model, &reference, "logits", &case);
        let facts = std::fs::read_to_string(case.join("facts.json")).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
        let counted = tuned.trainable_parameters();
        assert_eq!(
            (Some(counted.trainable), Some(counted.total)),
            (facts["trainable"].as_u64(), facts["total"].as_u64()),
            "{case:?}"
        );

        // PEFT's file again, byte for byte.
        tuned.save_pretrained(case.join("again")).unwrap();
        let file = |dir: &str| std::fs::read(case.join(dir).join("adapter_model.safetensors"));
        if report.foreign_keys.is_empty() {
            assert!(file("again").unwrap() == file("adapter").unwrap(), "{case:?}");
        }

        // Without the adapter the base, with a second one the second, and the first again; also in another kind.
        tuned.with_disabled(|| check(&model, &reference, "base", &case)).unwrap();
        let norms = LnTuningConfig::from_file(case.join("adapter/adapter_config.json")).unwrap();
        let norms = LnTuningConfig { modules_to_save: None, ..norms };
        let targets_only = tuned.add_adapter("other", norms);
        if targets_only.is_ok() {
            tuned.set_adapter("other").unwrap();
            check(&model, &reference, "base", &case);
            tuned.set_adapter("default").unwrap();
        }
        vs.double();
        let _ = tuned.state_dict("default").unwrap();
        check(&model, &reference, "logits", &case);
        vs.float();
        let _ = tuned.state_dict("default").unwrap();
        check(&model, &reference, "logits", &case);

        // A step moves it as PEFT's does.
        let mut optimizer = tuned.optimizer(Sgd::default(), 0.5).unwrap();
        let loss = logits(&model, &reference).square().mean(Kind::Float);
        optimizer.backward_step(&loss).unwrap();
        check(&model, &reference, "stepped", &case);
        drop(optimizer);
        tuned.unload().unwrap();
        check(&model, &reference, "base", &case);
        assert_eq!(snapshot(&vs), before, "{case:?}");

        // Merged in memory and saved; merged in files.
        let (tuned, _) = attach(&vs).unwrap();
        tuned.merge_and_unload().unwrap();
        check(&model, &reference, "logits", &case);
        pretrained::save(&vs, case.join("saved"), &format!("{:#}", model.config())).unwrap();
        merge(case.join("base"), case.join("adapter"), case.join("merged"), |_, _| ()).unwrap();
        for merged in ["saved", "merged"] {
            check(&open(&case.join(merged)).1, &reference, "logits", &case);
        }
        cases += 1;
    }
    assert_eq!(cases, 22);
    let checked = common::run_python("tied.py", &["check", root]);
    assert_eq!(checked.lines().filter(|line| line.ends_with(" ok")).count(), cases, "{checked}");
}

/// Clones that user code ties cannot be told apart: an adapter would change both.
#[test]
fn variables_that_user_code_ties_are_refused_unless_all_are_selected() {
    let vs = nn::VarStore::new(Device::Cpu);
    let embed = nn::embedding(vs.root() / "embed", 6, 4, Default::default());
    let _ = (vs.root() / "head").add("weight", embed.ws.shallow_clone(), true);
    nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    let config = LnTuningConfig::default().target_modules(["norm"]);
    let error = LnTuningModel::new(&vs, config.clone().modules_to_save(["head"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TiedTensors);
    LnTuningModel::new(&vs, config.modules_to_save(["head", "embed"])).unwrap();
}
