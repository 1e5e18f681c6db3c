//! A loss whose gradient would need weights that are no longer there is refused, as PyTorch does for changes in place.

use crate::nets::{named_bits, only, snapshot, state_of, two, Net};
use ln_tuning::recompute::Recompute;
use ln_tuning::{
    AdamW, AdapterOptions, ErrorKind, LnTuningConfig, LnTuningModel, LoadOptions, Optimizer,
    Precision,
};
use tch::{nn, no_grad, Device, Kind, Tensor};

/// Something that changes weights between a forward pass and its backward pass.
type Between = fn(&mut LnTuningModel, &mut Optimizer, &Net);

fn trained(kind: Kind, precision: Precision) -> (Net, LnTuningModel, Optimizer) {
    let net = Net::new(kind);
    let options = AdapterOptions::default().precision(precision);
    let config = LnTuningConfig::default();
    let mut tuned = LnTuningModel::with_options(&net.vs, config.clone(), "a", &options).unwrap();
    tuned.add_adapter_with("b", config, &options).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    (net, tuned, opt)
}

/// The ways backward, the last by user code alone.
const WAYS: [fn(Tensor, &mut Optimizer) -> ln_tuning::Result<()>; 6] = [
    |loss, opt| opt.backward(&loss),
    |loss, opt| opt.backward_step(&loss),
    |loss, opt| opt.backward_step_clip_norm(&loss, 1.),
    |loss, opt| {
        opt.backward_with(|inputs| Ok(((), Tensor::f_run_backward(&[&loss], inputs, true, false)?)))
    },
    |loss, opt| opt.backward_recompute(&Recompute::default(), |_| Ok(loss)).map(drop),
    |loss, _| Ok(loss.f_backward()?),
];

#[test]
fn a_loss_from_before_a_change_of_the_weights_is_refused() {
    let changes: [(&str, Between); 7] = [
        ("a step", |_, opt, net| opt.backward_step(&net.loss()).unwrap()),
        ("the step of another optimiser", |tuned, _, net| net.train(tuned, 1)),
        ("loaded weights", |tuned, _, _| {
            let state = tuned.state_dict("b").unwrap();
            tuned.load_state_dict("a", &state, &LoadOptions::default()).unwrap();
        }),
        ("a write by user code", |_, _, net| {
            no_grad(|| drop(net.vs.variables()["norm1.weight"].shallow_clone().fill_(2.)));
        }),
        ("another adapter that trained", |tuned, _, net| {
            tuned.set_adapter("b").unwrap();
            net.train(tuned, 1);
            tuned.set_adapter("a").unwrap();
        }),
        ("another adapter that can train", |tuned, _, _| {
            tuned.set_adapter("b").unwrap();
            tuned.set_adapter("a").unwrap();
        }),
        ("an adapter of the same name", |tuned, opt, _| {
            tuned.delete_adapter("a").unwrap();
            tuned.add_adapter("a", LnTuningConfig::default()).unwrap();
            tuned.set_adapter("a").unwrap();
            *opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        }),
    ];
    for (kind, precision) in [
        (Kind::Float, Precision::Master),
        (Kind::Double, Precision::Master),
        (Kind::BFloat16, Precision::Master),
        (Kind::BFloat16, Precision::Model),
    ] {
        for ((what, change), (way, backward)) in
            changes.iter().flat_map(|c| WAYS.iter().enumerate().map(move |way| (c, way)))
        {
            let (net, mut tuned, mut opt) = trained(kind, precision);
            let loss = net.loss();
            change(&mut tuned, &mut opt, &net);
            let before = (snapshot(&net.vs), format!("{:?}", opt.gradients().unwrap()));
            let error = backward(loss, &mut opt).expect_err(what);
            let kinds = [ErrorKind::InvalidState, ErrorKind::NoGradient];
            assert!(kinds.contains(&error.kind()), "{what}, way {way}: {error}");
            if error.kind() == ErrorKind::InvalidState {
                assert!(error.to_string().contains("compute it again"), "{error}");
            }
            assert_eq!((snapshot(&net.vs), format!("{:?}", opt.gradients().unwrap())), before);
            // And the cure works.
            opt.backward_step(&net.loss()).unwrap();
            assert_ne!(snapshot(&net.vs), before.0);
        }
    }
}

#[test]
fn a_loss_computed_under_one_adapter_never_trains_another() {
    for backward in WAYS {
        let net = Net::new(Kind::Float);
        let mut tuned = two(&net);
        let loss = net.loss();
        tuned.set_adapter("b").unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        opt.zero_grad().unwrap();
        let before = (state_of(&tuned, "a"), state_of(&tuned, "b"));
        backward(loss, &mut opt).unwrap_err();
        assert_eq!(opt.step().unwrap_err().kind(), ErrorKind::NoGradient);
        assert!((state_of(&tuned, "a"), state_of(&tuned, "b")) == before);
    }
}

/// Biases are not needed to go backward, so that libtorch has nothing to compare.
#[test]
fn nor_does_a_loss_whose_gradient_needs_no_weights() {
    let vs = nn::VarStore::new(Device::Cpu);
    let bias = vs.root().sub("norm").zeros("bias", &[4]);
    let weight = vs.root().sub("norm").ones("weight", &[4]);
    let mut tuned = LnTuningModel::with_adapter_name(&vs, only("norm"), "a").unwrap();
    let mut opt_a = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    tuned.add_adapter("b", only("norm")).unwrap();
    let x = Tensor::arange(4, (Kind::Float, Device::Cpu));
    let loss = || (&x * &weight + &bias).sum(Kind::Float);
    let of_a = loss();
    tuned.set_adapter("b").unwrap();
    let mut opt_b = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let of_b = loss();
    assert_eq!(opt_b.backward(&of_a).unwrap_err().kind(), ErrorKind::NoGradient);
    opt_b.backward_step(&of_b).unwrap();
    tuned.set_adapter("a").unwrap();
    assert_eq!(opt_a.backward(&of_b).unwrap_err().kind(), ErrorKind::NoGradient);
    opt_a.backward_step(&loss()).unwrap();
    tuned.unload().unwrap();
}

#[test]
fn the_base_and_frozen_adapters_may_come_between() {
    let step = |between: Between| {
        let (net, mut tuned, mut opt) = trained(Kind::Float, Precision::Master);
        tuned.set_requires_grad("b", false).unwrap();
        let loss = net.loss();
        between(&mut tuned, &mut opt, &net);
        opt.backward_step(&loss).unwrap();
        named_bits(&tuned.state_dict("a").unwrap())
    };
    let expected = step(|_, _, _| ());
    let betweens: [Between; 5] = [
        |tuned, _, net| tuned.with_disabled(|| drop(no_grad(|| net.loss()))).unwrap(),
        |tuned, _, net| {
            tuned.set_adapter("b").unwrap();
            let _reference = no_grad(|| net.loss());
            tuned.set_adapter("a").unwrap();
        },
        |tuned, _, _| {
            tuned.merge_adapter("a").unwrap();
            tuned.unmerge_adapter().unwrap();
        },
        |tuned, _, _| {
            let state = tuned.state_dict("a").unwrap();
            tuned.load_state_dict("b", &state, &LoadOptions::default()).unwrap();
        },
        |tuned, opt, _| {
            tuned.add_adapter("c", LnTuningConfig::default()).unwrap();
            opt.zero_grad().unwrap();
        },
    ];
    for (index, between) in betweens.into_iter().enumerate() {
        assert!(step(between) == expected, "{index}");
    }
}

#[test]
fn a_loss_from_after_a_change_of_kind_trains_and_one_from_before_is_refused() {
    for backward in &WAYS[..5] {
        let mut net = Net::new(Kind::Float);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        opt.backward_step(&net.loss()).unwrap();
        opt.zero_grad().unwrap();
        let former = net.loss();
        net.set_kind(Kind::BFloat16);
        let later = net.loss();
        let before = snapshot(&net.vs);
        backward(former, &mut opt).unwrap_err();
        backward(later, &mut opt).unwrap();
        opt.step().unwrap();
        assert_ne!(snapshot(&net.vs), before);
    }
}

#[test]
fn a_loss_from_before_an_adapter_was_attached_or_unloaded_is_refused() {
    for backward in WAYS {
        let net = Net::new(Kind::Float);
        let of_base = net.loss();
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        backward(of_base, &mut opt).unwrap_err();
        opt.backward_step(&net.loss()).unwrap();
        let of_adapter = net.loss();
        tuned.unload().unwrap();
        of_adapter.f_backward().unwrap_err();
        net.loss().backward();
    }
}

#[test]
fn a_second_backward_pass_through_one_graph_says_what_to_do() {
    for backward in &WAYS[..5] {
        let (net, _tuned, mut opt) = trained(Kind::Float, Precision::Master);
        let loss = net.loss();
        opt.backward(&loss).unwrap();
        let before = snapshot(&net.vs);
        let error = backward(loss, &mut opt).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(error.to_string().contains("Go backward once"), "{error}");
        assert_eq!(snapshot(&net.vs), before);
    }
}
