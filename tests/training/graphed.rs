//! A graphed step computes the bits of the ordinary methods. Without a GPU nothing is captured, but what a capture needs
//! is the same everywhere: inputs in tensors that stay, and numbers that change from step to step read from a tensor.

use std::collections::BTreeMap;

use ln_tuning::{
    AdamW, Algorithm, Decay, DynamicLossScale, ErrorKind, GraphedStep, LnTuningConfig,
    LnTuningModel, NormPlace, Optimizer, Schedule, Sgd,
};
use proptest::prelude::*;
use tch::{nn, Device, Kind, Tensor};

use crate::nets::{named_bits, Bits};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const STEPS: u64 = 20;

/// Two norms, one of which gets a gradient in some batches only; `kind` is that of the weights.
struct Net {
    vs: nn::VarStore,
    tuned: LnTuningModel,
}

impl Net {
    fn new(kind: Kind) -> Net {
        let wave = |n: i64, phase: f64| (Tensor::arange(n, CPU) + phase).sin();
        let mut vs = nn::VarStore::new(Device::Cpu);
        let _ = (vs.root() / "layers" / 0 / "norm").var_copy("weight", &(wave(7, 0.3) + 1.));
        let _ = (vs.root() / "layers" / 0 / "norm").var_copy("bias", &(wave(7, 0.7) * 0.1));
        let _ = (vs.root() / "norm").var_copy("weight", &(wave(7, 1.1) + 1.));
        vs.set_kind(kind);
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        Net { vs, tuned }
    }

    /// The second norm counts where the last dimension of the input is 7 and its first is even.
    fn loss(&self, inputs: &[Tensor]) -> ln_tuning::Result<Tensor> {
        let v = self.vs.variables();
        let x = &inputs[0];
        let hidden = x * &v["layers.0.norm.weight"] + &v["layers.0.norm.bias"];
        let hidden = if x.size()[0] % 2 == 0 { hidden * &v["norm.weight"] } else { hidden };
        Ok((hidden - &inputs[1]).to_kind(Kind::Float).square().mean(Kind::Float))
    }

    fn everything(&self, optimizer: &mut Optimizer) -> BTreeMap<String, Bits> {
        let mut all: Vec<(String, Tensor)> = self.tuned.state_dict("default").unwrap();
        all.extend(optimizer.state_dict().unwrap());
        named_bits(&all)
    }
}

fn batch(step: u64, rows: i64, kind: Kind) -> [Tensor; 2] {
    let wave = |phase: f64, size: f64| {
        ((Tensor::arange(rows * 7, CPU) * 1.7 + phase).sin() * size).view([rows, 7]).to_kind(kind)
    };
    let phase = step as f64;
    [wave(phase, 1.), wave(2. * phase + 1., 3.)]
}

/// Settings that a run begins with, and those that change during it.
#[derive(Debug, Clone, Copy)]
struct Case {
    algorithm: Algorithm,
    kind: Kind,
    clip: Option<f64>,
    /// A fixed loss scale, or a dynamic one for 0.
    scale: f64,
    /// Other rates and weight decay for the norm that stands before a block.
    groups: bool,
    /// Batches have one of two shapes.
    shapes: bool,
    decay: Decay,
}

fn prepared(net: &Net, case: &Case) -> Optimizer {
    let mut optimizer = net.tuned.optimizer(case.algorithm, 1e-2).unwrap();
    if case.scale == 0. {
        let growing = DynamicLossScale { growth_interval: 3, ..DynamicLossScale::default() };
        optimizer.set_dynamic_loss_scale(growing).unwrap();
    } else {
        optimizer.set_loss_scale(case.scale).unwrap();
    }
    optimizer
}

/// The settings of a step: the rate is 0 at the first.
fn set(optimizer: &mut Optimizer, case: &Case, step: u64) {
    let factor = Schedule::new(case.decay, 3, STEPS).factor(step);
    optimizer.set_lr(1e-2 * factor).unwrap();
    let places: Vec<NormPlace> = optimizer.norm_places().into_iter().collect();
    if let (true, Some(place)) = (case.groups, places.first()) {
        optimizer.set_lr_norms(*place, 3e-3 * factor).unwrap();
        optimizer.set_weight_decay_norms(*place, 0.1).unwrap();
    }
    if step == 12 {
        optimizer.set_momentum(0.8).unwrap_or_default();
    }
}

fn check(case: Case) {
    let [eager, graphed] = [(); 2].map(|()| Net::new(case.kind));
    let [mut by_hand, mut optimizer] = [&eager, &graphed].map(|net| prepared(net, &case));
    let mut step = GraphedStep::default();
    if let Some(max) = case.clip {
        step = step.clip_norm(max).unwrap();
    }
    for at in 0..STEPS {
        let rows = if case.shapes { 4 + (at / 2 % 2) as i64 } else { 4 };
        let inputs = batch(at, rows, case.kind);
        set(&mut by_hand, &case, at);
        by_hand.zero_grad().unwrap();
        let loss = eager.loss(&inputs).unwrap();
        by_hand.backward(&loss).unwrap();
        let norm = match case.clip {
            Some(max) => by_hand.clip_grad_norm(max),
            None => by_hand.grad_norm(),
        };
        let norm = norm.unwrap();
        by_hand.step().unwrap();

        set(&mut optimizer, &case, at);
        let [x, y] = &inputs;
        let stepped = step.run(&mut optimizer, &[x, y], |inputs| graphed.loss(inputs)).unwrap();
        assert!(!stepped.replayed && !stepped.loss.requires_grad());
        let figures = |loss: &Tensor, norm: &Tensor| {
            [loss, norm].map(|figure| figure.double_value(&[]).to_bits())
        };
        let found = figures(&stepped.loss, &stepped.grad_norm);
        assert_eq!(found, figures(&loss, &norm), "{case:?}, step {at}");
        let (own, expected) = (graphed.everything(&mut optimizer), eager.everything(&mut by_hand));
        assert_eq!(own, expected, "{case:?}, step {at}");
    }
    let reason = step.without_graph().unwrap();
    assert!(reason.contains("Cpu") && reason.contains("CUDA device"), "{reason}");
}

fn algorithms() -> impl Strategy<Value = Algorithm> {
    let sgd = |momentum: f64, nesterov: bool, wd: f64| {
        let dampening = if nesterov { 0. } else { 0.1 };
        Algorithm::from(Sgd { momentum, dampening, wd, nesterov: nesterov && momentum > 0. })
    };
    prop_oneof![
        (any::<bool>(), prop_oneof![Just(0.), Just(0.01)], prop_oneof![Just(1e-8), Just(0.)])
            .prop_map(|(amsgrad, wd, eps)| AdamW { amsgrad, wd, eps, ..AdamW::default() }.into()),
        (prop_oneof![Just(0.), Just(0.9)], any::<bool>(), prop_oneof![Just(0.), Just(0.1)])
            .prop_map(move |(momentum, nesterov, wd)| sgd(momentum, nesterov, wd)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_graphed_step_has_the_bits_of_one_without_a_graph(
        algorithm in algorithms(),
        kind in prop_oneof![
            Just(Kind::Float), Just(Kind::BFloat16), Just(Kind::Half), Just(Kind::Double)
        ],
        clip in prop_oneof![Just(None), Just(Some(0.5)), Just(Some(100.))],
        scale in prop_oneof![Just(1.), Just(1024.), Just(0.)],
        groups in any::<bool>(),
        shapes in any::<bool>(),
        decay in prop_oneof![Just(Decay::Constant), Just(Decay::Linear), Just(Decay::Cosine)],
    ) {
        tch::set_num_threads(1);
        check(Case { algorithm, kind, clip, scale, groups, shapes, decay });
    }
}

#[test]
fn it_goes_on_from_a_state_and_leaves_one_for_the_ordinary_methods() {
    let [plain, mixed] = [(); 2].map(|()| Net::new(Kind::Float));
    let mut by_hand = plain.tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let mut optimizer = mixed.tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let mut step = GraphedStep::default().clip_norm(1.).unwrap();
    for at in 0..12 {
        let [x, y] = batch(at, 4, Kind::Float);
        let inputs = [x, y];
        by_hand.backward_step_clip_norm(&plain.loss(&inputs).unwrap(), 1.).unwrap();
        if at % 3 == 0 {
            let state = optimizer.state_dict().unwrap();
            optimizer = mixed.tuned.optimizer(AdamW::default(), 1e-2).unwrap();
            optimizer.load_state_dict(&state).unwrap();
        }
        if at % 2 == 0 {
            let [x, y] = &inputs;
            let _ = step.run(&mut optimizer, &[x, y], |inputs| mixed.loss(inputs)).unwrap();
        } else {
            optimizer.backward_step_clip_norm(&mixed.loss(&inputs).unwrap(), 1.).unwrap();
        }
        assert_eq!(mixed.everything(&mut optimizer), plain.everything(&mut by_hand), "step {at}");
    }
}

#[test]
fn what_it_cannot_do_is_refused_and_changes_nothing() {
    let net = Net::new(Kind::Float);
    let mut optimizer = net.tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let before = net.everything(&mut optimizer);
    let [x, y] = batch(0, 4, Kind::Float);
    let mut step = GraphedStep::default();
    let refused = |error: ln_tuning::Error, kind: ErrorKind, words: &str| {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let clip = GraphedStep::default().clip_norm(-1.).unwrap_err();
    refused(clip, ErrorKind::InvalidArgument, "the clipping bound is -1");
    let empty = step.run(&mut optimizer, &[], |_| net.loss(&[x.copy(), y.copy()])).unwrap_err();
    refused(empty, ErrorKind::InvalidArgument, "has no input");
    optimizer.set_accumulation(3).unwrap();
    let many = step.run(&mut optimizer, &[&x, &y], |inputs| net.loss(inputs)).unwrap_err();
    refused(many, ErrorKind::InvalidState, "3 batches");
    optimizer.set_accumulation(1).unwrap();
    let constant = step.run(&mut optimizer, &[&x, &y], |inputs| Ok(inputs[0].sum(Kind::Float)));
    refused(constant.unwrap_err(), ErrorKind::NoGradient, "depends on no trainable tensor");
    assert_eq!(net.everything(&mut optimizer), before);
    let _ = step.run(&mut optimizer, &[&x, &y], |inputs| net.loss(inputs)).unwrap();
    assert_ne!(net.everything(&mut optimizer), before);
    // Beyond the most shapes, and with none at all, steps are made as well.
    for (most, rows) in [(1, 6), (0, 4)] {
        let mut step = GraphedStep::default().most_graphs(most);
        for rows in [4, rows] {
            let [x, y] = batch(1, rows, Kind::Float);
            let _ = step.run(&mut optimizer, &[&x, &y], |inputs| net.loss(inputs)).unwrap();
        }
    }
}
