//! Invariants: outputs, frozen weights, and every way in which user code can move storage.

use crate::nets::{self, bits, snapshot, Net};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Sgd};
use tch::nn::{Module, OptimizerConfig};
use tch::{nn, Device, Kind, Tensor};

const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half];

#[test]
fn attaching_changes_no_output() {
    for kind in KINDS {
        let net = Net::new(kind);
        let before = net.logits();
        let _tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        assert_eq!(bits(&net.logits()), bits(&before), "{kind:?}");
    }
}

#[test]
fn attaching_changes_outputs_as_freezing_does_and_no_further() {
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::Double, 1e-12)] {
        for bias in [true, false] {
            let mut vs = nn::VarStore::new(Device::Cpu);
            let _ = nn::layer_norm(vs.root() / "norm", vec![8], Default::default());
            let linear = nn::LinearConfig { bias, ..Default::default() };
            let mut up = nn::linear(vs.root() / "up", 8, 32, linear);
            up.ws.set_data(&nets::noise(&[32, 8], 1));
            vs.set_kind(kind);
            // libtorch multiplies these in another way once `up` needs no gradient.
            let folded = nets::noise(&[3, 2, 8], 2).to_kind(kind).transpose(0, 1);
            let inner = nets::noise(&[2, 8, 3], 3).to_kind(kind).transpose(1, 2);
            let outputs = || [&folded, &inner].map(|x| up.forward(x));
            let before = outputs();
            vs.freeze();
            let frozen = outputs();
            vs.unfreeze();
            let _tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            for ((attached, frozen), before) in outputs().iter().zip(&frozen).zip(&before) {
                assert_eq!(bits(attached), bits(frozen), "{kind:?} {bias}");
                let off = (attached - before).abs().max().double_value(&[]);
                assert!(off <= tolerance, "{kind:?} {bias}: {off}");
            }
        }
    }
}

#[test]
fn only_the_selected_tensors_require_a_gradient() {
    let net = Net::new(Kind::Float);
    let _tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    for (name, tensor) in net.vs.variables() {
        assert_eq!(tensor.requires_grad(), name.contains("norm"), "{name}");
    }
}

#[test]
fn only_the_selected_tensors_ever_change() {
    for kind in KINDS {
        let net = Net::new(kind);
        let before = snapshot(&net.vs);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        net.train(&tuned, 5);
        for (name, after) in snapshot(&net.vs) {
            assert_eq!(after == before[&name], !name.contains("norm"), "{name} in {kind:?}");
        }
    }
}

#[test]
fn attaching_training_and_unloading_gives_the_base_back() {
    for kind in KINDS {
        let net = Net::new(kind);
        let (before, flags) = (snapshot(&net.vs), net.flags());
        let config = LnTuningConfig::default().target_modules(["norm1"]).modules_to_save(["head"]);
        let tuned = LnTuningModel::new(&net.vs, config).unwrap();
        net.train(&tuned, 3);
        assert_ne!(snapshot(&net.vs), before);
        tuned.unload().unwrap();
        assert_eq!(snapshot(&net.vs), before, "{kind:?}");
        assert_eq!(net.flags(), flags);
    }
}

#[test]
fn merging_and_unmerging_are_inverses() {
    for kind in KINDS {
        let net = Net::new(kind);
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        net.train(&tuned, 3);
        let (weights, logits) = (snapshot(&net.vs), bits(&net.logits()));
        let state = nets::named_bits(&tuned.state_dict("default").unwrap());
        tuned.merge_adapter("default").unwrap();
        assert_eq!(bits(&net.logits()), logits);
        tuned.unmerge_adapter().unwrap();
        assert_eq!(snapshot(&net.vs), weights);
        assert_eq!(nets::named_bits(&tuned.state_dict("default").unwrap()), state);
    }
}

#[test]
fn merging_and_unloading_keeps_the_outputs() {
    let net = Net::new(Kind::BFloat16);
    let flags = net.flags();
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    net.train(&tuned, 3);
    let logits = bits(&net.logits());
    tuned.merge_and_unload().unwrap();
    assert_eq!(bits(&net.logits()), logits);
    assert_eq!(net.flags(), flags);
    // And a new adapter starts from there.
    let _tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    assert_eq!(bits(&net.logits()), logits);
}

#[test]
fn an_attachment_that_fails_changes_nothing() {
    let net = Net::new(Kind::Float);
    let (before, flags) = (snapshot(&net.vs), net.flags());
    let config = LnTuningConfig::default().target_modules(["nowhere"]);
    let error = LnTuningModel::new(&net.vs, config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoMatchingModules);
    assert_eq!((snapshot(&net.vs), net.flags()), (before, flags));
}

#[test]
fn a_second_handle_on_one_var_store_is_refused_until_the_first_is_gone() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let error = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    drop(tuned);
    LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
}

#[test]
fn an_optimizer_of_tch_works_on_the_attached_var_store() {
    for kind in KINDS {
        let net = Net::new(kind);
        let before = snapshot(&net.vs);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        // Its eps of 1e-8 is 0 in f16, and 0/0 no update.
        let mut opt = nn::AdamW::default().eps(1e-4).build(&net.vs, 1e-1).unwrap();
        for _ in 0..3 {
            opt.backward_step(&net.loss());
        }
        let after = snapshot(&net.vs);
        for (name, value) in &after {
            assert_eq!(*value == before[name], !name.contains("norm"), "{name} in {kind:?}");
        }
        // The saved weights are those that the optimizer of tch left.
        for (key, tensor) in tuned.state_dict("default").unwrap() {
            let name = key.replace("base_model.model.", "").replace(".ln_tuning_layers", "");
            assert_eq!(bits(&tensor.to_kind(kind)), after[&name], "{name} in {kind:?}");
        }
    }
}

#[test]
fn another_kind_of_the_model_is_followed() {
    for (from, to) in [
        (Kind::Float, Kind::BFloat16),
        (Kind::BFloat16, Kind::Float),
        (Kind::Float, Kind::Double),
        (Kind::Double, Kind::Half),
    ] {
        let mut net = Net::new(from);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        opt.backward_step(&net.loss()).unwrap();
        let masters = nets::named_bits_as(&tuned.state_dict("default").unwrap(), Kind::Float);
        net.set_kind(to);
        let moved = nets::named_bits_as(&tuned.state_dict("default").unwrap(), Kind::Float);
        assert_eq!(moved, masters, "{from:?} to {to:?}");
        for _ in 0..3 {
            opt.backward_step_clip_norm(&net.loss(), 1.0).unwrap();
        }
        for (name, tensor) in net.vs.variables() {
            assert_eq!(tensor.kind(), to, "{name}");
        }
        let after = tuned.state_dict("default").unwrap();
        assert_ne!(nets::named_bits_as(&after, Kind::Float), masters);
        for (key, master) in after {
            let name = key.replace("base_model.model.", "").replace(".ln_tuning_layers", "");
            let live = &net.vs.variables()[&name];
            assert_eq!(
                bits(&master.to_kind(to)),
                bits(live),
                "{name}: the model computes with what was trained"
            );
        }
    }
}

#[test]
fn a_gradient_from_before_a_change_of_kind_does_no_harm() {
    let mut net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    net.loss().backward();
    net.set_kind(Kind::BFloat16);
    opt.backward_step(&net.loss()).unwrap();
    net.loss().backward();
    opt.step().unwrap();
}

#[test]
fn moving_to_the_same_device_changes_nothing() {
    let mut net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    net.train(&tuned, 2);
    let before = snapshot(&net.vs);
    net.vs.set_device(Device::Cpu);
    tuned.state_dict("default").unwrap();
    assert_eq!(snapshot(&net.vs), before);
}

#[test]
fn loading_a_base_under_the_adapter_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.safetensors");
    let mut net = Net::new(Kind::Float);
    net.vs.save(&path).unwrap();
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    net.vs.load(&path).unwrap();
    let before = snapshot(&net.vs);
    assert_eq!(opt.backward_step(&net.loss()).unwrap_err().kind(), ErrorKind::BaseChanged);
    assert_eq!(tuned.save_pretrained(dir.path()).unwrap_err().kind(), ErrorKind::BaseChanged);
    assert_eq!(tuned.merge_adapter("default").unwrap_err().kind(), ErrorKind::BaseChanged);
    assert_eq!(tuned.unload().unwrap_err().kind(), ErrorKind::BaseChanged);
    assert_eq!(snapshot(&net.vs), before);
    // The cure that the message names.
    drop(opt);
    LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap().unload().unwrap();
    assert_eq!(snapshot(&net.vs), before);
}

#[test]
fn loading_a_base_of_another_kind_under_the_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.safetensors");
    Net::new(Kind::Float).vs.save(&path).unwrap();
    let mut net = Net::new(Kind::BFloat16);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    net.vs.load(&path).unwrap();
    assert_eq!(tuned.state_dict("default").unwrap_err().kind(), ErrorKind::BaseChanged);
}

#[test]
fn copying_another_var_store_under_the_adapter_is_refused() {
    let mut net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    net.vs.copy(&Net::new(Kind::Float).vs).unwrap();
    assert_eq!(tuned.state_dict("default").unwrap_err().kind(), ErrorKind::BaseChanged);
}

#[test]
fn a_frozen_var_store_trains_nothing_until_told_to() {
    let mut net = Net::new(Kind::Float);
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let loss = net.loss();
    net.vs.freeze();
    let error = opt.backward_step(&loss).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("set_requires_grad(\"default\", true)"), "{error}");
    tuned.set_requires_grad("default", true).unwrap();
    opt.backward_step(&net.loss()).unwrap();
}

#[test]
fn a_thawed_var_store_is_refused_until_told_to_freeze() {
    let mut net = Net::new(Kind::Float);
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    net.vs.unfreeze();
    let error = opt.backward_step(&net.loss()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("vs.unfreeze"), "{error}");
    tuned.set_requires_grad("default", true).unwrap();
    opt.backward_step(&net.loss()).unwrap();
}

#[test]
fn data_set_by_hand_in_a_tuned_variable_becomes_the_adapters() {
    let net = Net::new(Kind::BFloat16);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut weight = net.vs.variables().remove("norm1.weight").unwrap();
    weight.set_data(&Tensor::full([8], 3.0, (Kind::BFloat16, Device::Cpu)));
    let state = tuned.state_dict("default").unwrap();
    let (_, value) =
        state.iter().find(|(key, _)| key.contains("norm1") && key.ends_with("weight")).unwrap();
    assert_eq!(value.double_value(&[0]), 3.0);
    let mut opt = tuned.optimizer(Sgd::default(), 1.0).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    assert_ne!(weight.double_value(&[0]), 3.0, "the variable is not detached from the adapter");
}

#[test]
fn masters_of_a_16_bit_model_keep_what_the_model_rounds_away() {
    let net = Net::new(Kind::BFloat16);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let before = snapshot(&net.vs);
    let mut opt = tuned.optimizer(AdamW::default().wd(0.), 1e-5).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    let state = tuned.state_dict("default").unwrap();
    let weight =
        &state.iter().find(|(k, _)| k.ends_with("norm1.ln_tuning_layers.weight")).unwrap().1;
    assert_eq!(weight.kind(), Kind::Float);
    assert_eq!(bits(&net.vs.variables()["norm1.weight"]), before["norm1.weight"]);
    let moved = (weight - 1.0).abs().max().double_value(&[]);
    assert!(moved > 0.9e-5 && moved < 1.1e-5, "{moved}");
}
