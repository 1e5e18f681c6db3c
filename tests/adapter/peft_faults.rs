//! Each known fault of PEFT's LN tuning, absent.

use crate::nets::{named_bits, only, snapshot, state_of, two, Net};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LoadOptions, SaveOptions};
use tch::{Kind, Tensor};

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
