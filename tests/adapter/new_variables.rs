//! Variables that are made after an adapter was attached: seen, counted, given to adapters or refused, never
//! overlooked.

use crate::nets::{snapshot, Net};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Kind, Tensor};

fn head(net: &Net) -> nn::Linear {
    nn::linear(net.vs.root() / "extra", 3, 2, Default::default())
}

fn loss(net: &Net, head: &nn::Linear) -> Tensor {
    head.forward(&net.logits()).square().mean(Kind::Float)
}

#[test]
fn a_new_head_that_no_adapter_trains_is_named_with_the_cure_by_whatever_would_overlook_it() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let before = tuned.trainable_parameters();
    let head = head(&net);
    let dir = tempfile::tempdir().unwrap();
    for error in [
        tuned.optimizer(AdamW::default(), 1e-3).unwrap_err(),
        opt.backward(&loss(&net, &head)).unwrap_err(),
        opt.backward_step(&loss(&net, &head)).unwrap_err(),
        opt.step().unwrap_err(),
        tuned.save_pretrained(dir.path()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        let text = error.to_string();
        for word in ["'extra.bias' (and 1 more)", "modules_to_save([\"extra\"])", "add_adapter"] {
            assert!(text.contains(word), "{text}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // It counts.
    let after = tuned.trainable_parameters();
    assert_eq!((after.trainable, after.total), (before.trainable, before.total + 8));
    assert_eq!(tuned.model_status().parameters, after);
    // The rest works on, and the new head keeps what user code makes of it.
    tuned.state_dict("default").unwrap();
    let mut own = nn::AdamW::default().build(&net.vs, 1e-2).unwrap();
    own.backward_step(&loss(&net, &head));
    tuned.state_dict("default").unwrap();
    let trained = snapshot(&net.vs);
    tuned.unload().unwrap();
    let left = snapshot(&net.vs);
    assert_eq!(left["extra.weight"], trained["extra.weight"]);
    assert_ne!(left["norm1.weight"], trained["norm1.weight"]);
    assert!(head.ws.requires_grad());
}

#[test]
fn a_new_adapter_takes_a_new_head_and_trains_saves_and_gives_it_back() {
    let net = Net::new(Kind::BFloat16);
    let base = snapshot(&net.vs);
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut head = head(&net);
    head.ws.set_data(&head.ws.to_kind(Kind::BFloat16));
    let bias = head.bs.as_mut().unwrap();
    bias.set_data(&bias.to_kind(Kind::BFloat16));
    loss(&net, &head).backward();
    let untrained = snapshot(&net.vs);
    let config = LnTuningConfig::default().modules_to_save(["extra"]);
    tuned.add_adapter("whole", config).unwrap();
    tuned.set_adapter("whole").unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-1).unwrap();
    assert_eq!(
        opt.step().unwrap_err().kind(),
        ErrorKind::NoGradient,
        "an old gradient is no one's"
    );
    opt.backward_step(&loss(&net, &head)).unwrap();
    assert_ne!(snapshot(&net.vs)["extra.weight"], untrained["extra.weight"]);
    assert_eq!(tuned.trainable_parameters().trainable, 40 + 8);
    let dir = tempfile::tempdir().unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    tuned.load_adapter(dir.path().join("whole"), "again", &LoadOptions::default()).unwrap();
    assert_eq!(crate::nets::state_of(&tuned, "again"), crate::nets::state_of(&tuned, "whole"));
    // The first adapter trains on as before.
    tuned.set_adapter("default").unwrap();
    assert_eq!(snapshot(&net.vs)["extra.weight"], untrained["extra.weight"]);
    net.train(&tuned, 1);
    tuned.unload().unwrap();
    let after = snapshot(&net.vs);
    assert_eq!(after["extra.weight"], untrained["extra.weight"]);
    assert!(base.iter().all(|(name, bits)| after[name] == *bits));
    assert!(head.ws.requires_grad());
}

#[test]
fn a_new_variable_that_is_frozen_becomes_part_of_the_base() {
    type Freeze = fn(&mut Net, &mut LnTuningModel, &nn::Linear);
    let ways: [Freeze; 3] = [
        |_, tuned, _| tuned.set_requires_grad("default", true).unwrap(),
        |net, tuned, _| {
            net.vs.freeze();
            tuned.state_dict("default").unwrap();
            tuned.set_requires_grad("default", true).unwrap();
        },
        |_, _, head| {
            let _ = head.ws.set_requires_grad(false);
            let _ = head.bs.as_ref().unwrap().set_requires_grad(false);
        },
    ];
    for freeze in ways {
        let mut net = Net::new(Kind::Float);
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut head = head(&net);
        freeze(&mut net, &mut tuned, &head);
        let mut opt = tuned.optimizer(AdamW::default(), 1e-1).unwrap();
        let before = snapshot(&net.vs);
        opt.backward_step(&loss(&net, &head)).unwrap();
        assert_eq!(snapshot(&net.vs)["extra.weight"], before["extra.weight"]);
        let dir = tempfile::tempdir().unwrap();
        tuned.save_pretrained(dir.path()).unwrap();
        // And is watched as the rest of it.
        tch::no_grad(|| drop(head.ws.fill_(1.)));
        let error = tuned.save_pretrained(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BaseChanged);
        assert!(error.to_string().contains("extra.weight"), "{error}");
    }
}

#[test]
fn buffers_and_variables_made_frozen_are_no_ones_to_train() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let _ = net.vs.root().zeros_no_train("steps", &[3]);
    let _ = net.vs.root().add("ids", Tensor::arange(3, (Kind::Int64, tch::Device::Cpu)), false);
    net.train(&tuned, 1);
    tuned.save_pretrained(tempfile::tempdir().unwrap().path()).unwrap();
    tuned.unload().unwrap();
}

#[test]
fn a_saved_configuration_selects_no_norm_that_was_made_later() {
    for config in [LnTuningConfig::default(), LnTuningConfig::default().target_pattern(".*norm.*")]
    {
        let net = Net::new(Kind::Float);
        let mut tuned = LnTuningModel::new(&net.vs, config.clone()).unwrap();
        let _ = nn::layer_norm(net.vs.root() / "norm3", vec![3], Default::default());
        let _ = nn::layer_norm(net.vs.root() / "more" / "norm1", vec![3], Default::default());
        // An adapter that is added now sees them, the first does not.
        tuned.add_adapter("all", config).unwrap();
        assert_eq!(tuned.state_dict("default").unwrap().len(), 4);
        assert_eq!(tuned.state_dict("all").unwrap().len(), 8);
        net.train(&tuned, 1);
        let dir = tempfile::tempdir().unwrap();
        tuned.save_pretrained(dir.path()).unwrap();
        tuned.load_adapter(dir.path(), "again", &LoadOptions::default()).unwrap();
        assert_eq!(
            crate::nets::state_of(&tuned, "again"),
            crate::nets::state_of(&tuned, "default")
        );
        tuned.load_adapter(dir.path().join("all"), "more", &LoadOptions::default()).unwrap();
        assert_eq!(tuned.state_dict("more").unwrap().len(), 8);
    }
}
