//! Adapters that bring the embeddings of a resized vocabulary along, as PEFT writes them.

use std::collections::HashMap;
use std::path::Path;

use crate::common;
use crate::nets::snapshot;
use ln_tuning::models::{AnyModel, Inputs};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{merge, ErrorKind, LnTuningModel, SavedAdapter};
use tch::{no_grad, Device, Tensor};

type Reference = HashMap<String, Tensor>;

fn check(model: &AnyModel, reference: &Reference, name: &str, case: &Path) {
    let mut inputs = Inputs::new(&reference["input_ids"]);
    if let Some(ids) = reference.get("decoder_input_ids") {
        inputs = inputs.decoder_ids(ids);
    }
    let found = no_grad(|| model.logits(inputs)).unwrap();
    let difference = (found - &reference[name]).abs().max().double_value(&[]);
    assert!(difference < 2e-5, "{case:?}: {name} differs by {difference}");
}

#[test]
fn a_resized_vocabulary_is_loaded_into_a_base_of_its_size_and_merging_makes_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    common::run_python("resized.py", &["make", root]);
    let mut cases = 0;
    for case in std::fs::read_dir(dir.path()).unwrap() {
        let case = case.unwrap().path();
        let reference: Reference =
            Tensor::read_safetensors(case.join("reference.st")).unwrap().into_iter().collect();
        let (adapter, open) =
            (case.join("adapter"), |dir: &Path| AnyModel::from_pretrained(dir, Device::Cpu, None));
        for (base, before) in [("resized", "base"), ("other", "other")] {
            let (vs, model) = open(&case.join(base)).unwrap();
            let bits = snapshot(&vs);
            let mut tuned = LnTuningModel::from_pretrained(&vs, &adapter).unwrap();
            check(&model, &reference, "logits", &case);
            tuned.with_disabled(|| check(&model, &reference, before, &case)).unwrap();
            // The tensors that it brings along are saved again.
            let again = tempfile::tempdir().unwrap();
            tuned.save_pretrained(again.path()).unwrap();
            tuned.unload().unwrap();
            assert_eq!(snapshot(&vs), bits);
            let again = LnTuningModel::from_pretrained(&vs, again.path()).unwrap();
            check(&model, &reference, "logits", &case);
            again.merge_and_unload().unwrap();
            check(&model, &reference, "logits", &case);
        }
        let (vs, _) = open(&case.join("base")).unwrap();
        if !case.ends_with("same") {
            let error = LnTuningModel::from_pretrained(&vs, &adapter).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
            assert!(error.to_string().contains("`merge`"), "{error}");
        }
        for base in ["base", "resized", "other"] {
            // Without model code.
            let saved = SavedAdapter::open(&adapter).unwrap();
            let vs = saved.var_store(ModelFiles::open(case.join(base)).unwrap()).unwrap();
            let tuned = LnTuningModel::from_pretrained(&vs, &adapter).unwrap();
            let diff = tuned.diff("default", None).unwrap();
            assert!(!diff.tensors.is_empty(), "{case:?}");
            drop((tuned, vs));
            let out = case.join(format!("merged_{base}"));
            merge(case.join(base), &adapter, &out, |_, _| ()).unwrap();
            check(&open(&out).unwrap().1, &reference, "logits", &case);
        }
        cases += 1;
    }
    assert_eq!(cases, 8);
    let checked = common::run_python("resized.py", &["check", root]);
    assert_eq!(checked.lines().filter(|line| line.ends_with(" ok")).count(), cases, "{checked}");
}
