//! An error between the backward passes of one update loses nothing.

use crate::nets::{named_bits, snapshot, Net};
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer, Result};
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A call that fails.
type Broken = fn(&mut Optimizer, &Net, &mut LnTuningModel) -> Result<()>;

#[test]
fn an_error_while_accumulating_leaves_what_was_accumulated() {
    let broken: [Broken; 6] = [
        |opt, net, _| opt.backward_step(&net.logits()),
        |opt, _, _| opt.backward_step(&Tensor::new()),
        |opt, _, _| opt.backward_step(&(Tensor::ones([], CPU).set_requires_grad(true) * 2.)),
        |opt, net, _| opt.backward_step_clip_norm(&net.loss(), f64::NAN),
        |opt, net, tuned| {
            let loss = net.loss();
            let _guard = tuned.disable().unwrap();
            opt.backward_step(&loss)
        },
        |opt, _, _| {
            let failing = |_: &mut Tape<'_>| Ok(Tensor::ones([2], CPU));
            opt.backward_recompute(&Recompute::default(), failing).map(drop)
        },
    ];
    let run = |error_at: Option<(usize, usize)>| {
        let net = Net::new(Kind::Float);
        let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        opt.set_accumulation(3).unwrap();
        for call in 0..6 {
            if let Some((at, index)) = error_at {
                if at == call {
                    let before = (opt.gradients().unwrap(), snapshot(&net.vs));
                    broken[index](&mut opt, &net, &mut tuned).unwrap_err();
                    let after = (opt.gradients().unwrap(), snapshot(&net.vs));
                    assert_eq!(
                        format!("{before:?}"),
                        format!("{after:?}"),
                        "call {at}, error {index}"
                    );
                }
            }
            opt.backward_step(&net.loss()).unwrap();
        }
        named_bits(&tuned.state_dict("default").unwrap())
    };
    let expected = run(None);
    for call in 0..6 {
        for index in 0..broken.len() {
            assert!(run(Some((call, index))) == expected, "error {index} before call {call}");
        }
    }
}

#[test]
fn a_step_without_a_gradient_is_an_error_after_any_error() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.set_accumulation(2).unwrap();
    opt.backward_step(&net.logits()).unwrap_err();
    let before = snapshot(&net.vs);
    assert_eq!(opt.step().unwrap_err().kind(), ErrorKind::NoGradient);
    assert_eq!(snapshot(&net.vs), before);
    // A gradient that does not fit its variable is named, and the cure works.
    net.loss().backward();
    let mut grad = net.vs.variables()["norm1.weight"].grad();
    grad.set_data(&Tensor::ones([3], CPU));
    let error = opt.step().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    assert!(error.to_string().contains("zero_grad"), "{error}");
    opt.zero_grad().unwrap();
    opt.backward_step(&net.loss()).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    assert_ne!(snapshot(&net.vs), before);
}

#[test]
fn an_update_that_has_begun_keeps_its_number_of_parts() {
    for later in [1, 2, 5] {
        let net = Net::new(Kind::Float);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        opt.set_accumulation(3).unwrap();
        let before = snapshot(&net.vs);
        opt.backward_step(&net.loss()).unwrap();
        opt.backward_step(&net.loss()).unwrap();
        opt.set_accumulation(later).unwrap();
        assert_eq!(snapshot(&net.vs), before);
        opt.backward_step(&net.loss()).unwrap();
        for _ in 0..2 {
            let before = snapshot(&net.vs);
            for _ in 0..later {
                assert_eq!(snapshot(&net.vs), before);
                opt.backward_step(&net.loss()).unwrap();
            }
            assert_ne!(snapshot(&net.vs), before);
        }
    }
}
