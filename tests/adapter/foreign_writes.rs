//! Writes by user code that raise no version: tch's own optimisers, `data()`, storage set by hand.

use std::collections::BTreeMap;

use crate::nets::{bits, snapshot, state_of, two, Net};
use ln_tuning::{
    AdamW, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, Precision, Sgd,
};
use tch::nn::OptimizerConfig;
use tch::{nn, Kind, Tensor};

const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half];

fn attach(net: &Net, precision: Precision) -> LnTuningModel {
    let options = AdapterOptions::default().precision(precision);
    LnTuningModel::with_options(&net.vs, LnTuningConfig::default(), "default", &options).unwrap()
}

/// Steps of one of tch's own optimisers.
fn foreign(net: &Net, algorithm: &str) {
    let mut opt = match algorithm {
        "sgd" => nn::Sgd::default().build(&net.vs, 0.5),
        "momentum" => nn::sgd(0.9, 0., 1e-2, true).build(&net.vs, 0.5),
        // Their eps of 1e-8 is 0 in f16, and 0/0 no update.
        "adam" => nn::Adam::default().eps(1e-4).build(&net.vs, 1e-1),
        "adamw" => nn::AdamW::default().eps(1e-4).build(&net.vs, 1e-1),
        _ => nn::RmsProp { eps: 1e-4, ..nn::rms_prop(0.99, 1e-4, 0., 0., false) }
            .build(&net.vs, 1e-2),
    }
    .unwrap();
    for _ in 0..3 {
        opt.backward_step(&net.loss());
    }
}

/// The adapter's tensors in the model's kind, by the names of the variables.
fn saved(net: &Net, tuned: &LnTuningModel) -> BTreeMap<String, crate::nets::Bits> {
    let kind = net.vs.variables()["norm1.weight"].kind();
    let named = |(key, tensor): (String, Tensor)| {
        let name = key.replace("base_model.model.", "").replace(".ln_tuning_layers", "");
        (name, bits(&tensor.to_kind(kind)))
    };
    tuned.state_dict("default").unwrap().into_iter().map(named).collect()
}

fn live(net: &Net) -> BTreeMap<String, crate::nets::Bits> {
    snapshot(&net.vs).into_iter().filter(|(name, _)| name.contains("norm")).collect()
}

#[test]
fn what_another_optimizer_trained_is_what_is_read_and_saved_and_trained_on() {
    for kind in KINDS {
        for precision in [Precision::Master, Precision::Model] {
            for algorithm in ["sgd", "momentum", "adam", "adamw", "rms_prop"] {
                let case = format!("{algorithm} on {kind:?} with {precision:?}");
                let net = Net::new(kind);
                let base = snapshot(&net.vs);
                let tuned = attach(&net, precision);
                tuned.optimizer(Sgd::default(), 0.1).unwrap().backward_step(&net.loss()).unwrap();
                let before = live(&net);
                foreign(&net, algorithm);
                let trained = live(&net);
                assert_ne!(trained, before, "{case}");
                assert_eq!(saved(&net, &tuned), trained, "{case}");
                let dir = tempfile::tempdir().unwrap();
                tuned.save_pretrained(dir.path()).unwrap();

                // A step that moves nothing keeps what the other optimizer left.
                let mut opt = tuned.optimizer(Sgd::default(), 0.).unwrap();
                foreign(&net, algorithm);
                let trained = live(&net);
                opt.backward_step(&net.loss()).unwrap();
                assert_eq!(live(&net), trained, "{case}");
                assert_eq!(saved(&net, &tuned), trained, "{case}");

                tuned.unload().unwrap();
                assert_eq!(snapshot(&net.vs), base, "{case}");
                LnTuningModel::from_pretrained(&net.vs, dir.path()).unwrap();
            }
        }
    }
}

#[test]
fn switching_disabling_merging_and_casting_keep_what_another_optimizer_trained() {
    type Between = fn(&mut Net, &mut LnTuningModel);
    let between: [(&str, Between); 6] = [
        ("nothing", |_, _| {}),
        ("switch", |_, tuned| {
            tuned.add_adapter("other", LnTuningConfig::default()).unwrap();
            tuned.set_adapter("other").unwrap();
            tuned.set_adapter("default").unwrap();
        }),
        ("disable", |net, tuned| drop(tuned.with_disabled(|| net.logits()).unwrap())),
        ("merge", |_, tuned| {
            tuned.merge_adapter("default").unwrap();
            tuned.unmerge_adapter().unwrap();
        }),
        ("f32", |net, _| net.set_kind(Kind::Float)),
        ("f64 and back", |net, _| {
            let kind = net.vs.variables()["up.weight"].kind();
            net.set_kind(Kind::Double);
            net.set_kind(kind);
        }),
    ];
    for kind in KINDS {
        for (case, between) in between {
            let mut net = Net::new(kind);
            let base = snapshot(&net.vs);
            let mut tuned = attach(&net, Precision::Master);
            foreign(&net, "sgd");
            let trained = live(&net);
            between(&mut net, &mut tuned);
            if case != "f32" {
                assert_eq!(live(&net), trained, "{case} in {kind:?}");
            }
            assert_eq!(saved(&net, &tuned), live(&net), "{case} in {kind:?}");
            net.train(&tuned, 1);
            assert_eq!(saved(&net, &tuned), live(&net), "{case} in {kind:?}");
            net.set_kind(kind);
            tuned.unload().unwrap();
            assert_eq!(snapshot(&net.vs), base, "{case} in {kind:?}");
        }
    }
}

#[test]
fn an_element_that_is_written_is_the_adapters_and_the_others_keep_their_masters() {
    let net = Net::new(Kind::BFloat16);
    let tuned = attach(&net, Precision::Master);
    net.train(&tuned, 2);
    let weight = |tuned: &LnTuningModel| tuned.state_dict("default").unwrap().remove(1).1;
    let before = weight(&tuned);
    let live = &net.vs.variables()["norm1.weight"];
    for (written, value) in [(live.data(), 2.5), (live.detach(), 3.5)] {
        let _ = written.get(3).fill_(value);
        let after = weight(&tuned);
        assert_eq!(after.double_value(&[3]), value);
        for element in [0, 1, 2, 4, 5, 6, 7] {
            assert_eq!(after.double_value(&[element]), before.double_value(&[element]));
        }
    }
    // Loading overwrites it.
    let mut tuned = tuned;
    let state = tuned.state_dict("default").unwrap();
    let _ = net.vs.variables()["norm1.weight"].data().fill_(7.);
    tuned.load_state_dict("default", &state, &LoadOptions::default()).unwrap();
    assert_eq!(crate::nets::named_bits(&state), state_of(&tuned, "default"));
}

#[test]
fn differences_and_means_read_what_another_optimizer_trained() {
    let net = Net::new(Kind::BFloat16);
    let mut tuned = two(&net);
    tuned.set_adapter("b").unwrap();
    let before = tuned.diff("b", None).unwrap();
    foreign(&net, "sgd");
    assert_ne!(tuned.diff("b", None).unwrap(), before);
    foreign(&net, "sgd");
    tuned.interpolate(&[("b", 1.)], "copy").unwrap();
    assert_eq!(state_of(&tuned, "copy"), state_of(&tuned, "b"));
}

#[test]
fn a_base_that_was_trained_without_a_mark_is_refused_where_it_matters() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let mut net = Net::new(kind);
        let mut tuned = attach(&net, Precision::Master);
        net.vs.unfreeze();
        foreign(&net, "sgd");
        net.vs.freeze();
        tuned.set_requires_grad("default", true).unwrap();
        let before = snapshot(&net.vs);
        for error in [
            tuned.save_pretrained(dir.path()).unwrap_err(),
            tuned.merge_adapter("default").unwrap_err(),
            tuned.unload().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::BaseChanged, "{error}");
            let names = ["up.", "head."];
            assert!(names.iter().any(|name| error.to_string().contains(name)), "{error}");
        }
        assert_eq!(snapshot(&net.vs), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_base_written_to_while_adapters_are_disabled_is_refused() {
    let net = Net::new(Kind::Float);
    let mut tuned = attach(&net, Precision::Master);
    tuned
        .with_disabled(|| drop(net.vs.variables()["norm1.weight"].data().get(0).fill_(9.)))
        .unwrap();
    let error = tuned.merge_and_unload().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BaseChanged);
    assert!(error.to_string().contains("norm1.weight"), "{error}");
}

#[test]
fn storage_set_by_hand_in_a_frozen_variable_is_followed_if_it_is_the_same_and_refused_otherwise() {
    let net = Net::new(Kind::Float);
    let tuned = attach(&net, Precision::Master);
    let mut weight = net.vs.variables().remove("up.weight").unwrap();
    weight.set_data(&weight.copy());
    tuned.state_dict("default").unwrap();
    weight.set_data(&weight.to_kind(Kind::Half).to_kind(Kind::Float));
    tuned.state_dict("default").unwrap();
    let before = weight.data().copy();
    for other in [&before + 1., before.narrow(0, 0, 3).copy(), before.transpose(0, 1).contiguous()]
    {
        weight.set_data(&other);
        let error = tuned.state_dict("default").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BaseChanged);
        assert!(error.to_string().contains("up.weight"), "{error}");
        weight.set_data(&before);
        tuned.state_dict("default").unwrap();
    }
}

#[test]
fn a_round_trip_through_a_narrower_kind_keeps_the_masters() {
    let mut net = Net::new(Kind::Float);
    let tuned = attach(&net, Precision::Master);
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    let before = state_of(&tuned, "default");
    net.set_kind(Kind::Half);
    net.set_kind(Kind::Float);
    assert_eq!(state_of(&tuned, "default"), before);
    assert_eq!(saved(&net, &tuned), live(&net));
}
