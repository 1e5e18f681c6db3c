//! Dynamic loss scaling does what torch's GradScaler does, and the device decides.

use std::collections::HashMap;

use crate::common;
use crate::nets::{named_bits, snapshot, Net};
use ln_tuning::{
    AdamW, Algorithm, DynamicLossScale, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer,
};
use tch::{nn, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const STEPS: i64 = 40;

/// Gradients between 1e-4 and 10: some overflow in f16 at a scale of 65536.
fn problem() -> HashMap<String, Tensor> {
    let wave = |n: i64, phase: f64| (Tensor::arange(n, CPU) * 1.3 + phase).sin();
    let size = (wave(STEPS, 0.5) * 2.5 - 1.5).unsqueeze(1);
    let gradients = wave(STEPS * 6, 0.).view([STEPS, 6]) * Tensor::from(10f32).pow(&size);
    HashMap::from([
        ("norm.weight".to_owned(), wave(6, 0.3) + 1.0),
        ("rare_norm.weight".to_owned(), wave(3, 1.1) + 1.0),
        ("gradients".to_owned(), gradients),
    ])
}

struct Scaled {
    data: HashMap<String, Tensor>,
    vs: nn::VarStore,
    tuned: LnTuningModel,
}

impl Scaled {
    fn new() -> Scaled {
        tch::set_num_threads(1);
        let data = problem();
        let mut vs = nn::VarStore::new(Device::Cpu);
        for module in ["norm", "rare_norm"] {
            let _ = (vs.root() / module).var_copy("weight", &data[&format!("{module}.weight")]);
        }
        let config = LnTuningConfig::default().target_modules(["norm", "rare_norm"]);
        let tuned = LnTuningModel::new(&vs, config).unwrap();
        // The masters keep what f16 rounds away.
        vs.half();
        Scaled { data, vs, tuned }
    }

    fn optimizer(&self, algorithm: Algorithm, lr: f64) -> Optimizer {
        let mut opt = self.tuned.optimizer(algorithm, lr).unwrap();
        let settings = DynamicLossScale { growth_interval: 3, ..DynamicLossScale::default() };
        opt.set_dynamic_loss_scale(settings).unwrap();
        opt
    }

    fn loss(&self, step: i64) -> Tensor {
        let (v, gradient) =
            (self.vs.variables(), self.data["gradients"].get(step).to_kind(Kind::Half));
        let sum = |weight: &Tensor, factors: Tensor| {
            (weight * factors).to_kind(Kind::Float).sum(Kind::Float)
        };
        let loss = sum(&v["norm.weight"], gradient.shallow_clone());
        match step % 4 {
            1 => loss,
            _ => loss + sum(&v["rare_norm.weight"], gradient.narrow(0, 0, 3)) / 2.,
        }
    }
}

type Step = fn(&mut Optimizer, &Tensor) -> ln_tuning::Result<()>;

#[test]
fn weights_scale_and_skipped_steps_are_those_of_grad_scaler() {
    let dir = tempfile::tempdir().unwrap();
    let data = problem();
    let tensors: Vec<(&String, &Tensor)> = data.iter().collect();
    Tensor::write_safetensors(&tensors, dir.path().join("problem.safetensors")).unwrap();
    common::run_python("loss_scale.py", &[dir.path().to_str().unwrap()]);
    let plain: Step = |opt, loss| opt.backward_step(loss);
    let cases: [(&str, Algorithm, f64, Step); 6] = [
        ("adamw", AdamW::default().wd(0.1).into(), 1e-2, plain),
        ("amsgrad", AdamW::default().amsgrad(true).into(), 1e-2, plain),
        ("sgd", nn::sgd(0., 0., 0., false).into(), 1e-3, plain),
        ("momentum", nn::sgd(0.9, 0.5, 0.1, false).into(), 1e-3, plain),
        ("clipped", AdamW::default().into(), 1e-2, |opt, loss| {
            opt.backward_step_clip_norm(loss, 0.5)
        }),
        ("clamped", AdamW::default().into(), 1e-2, |opt, loss| opt.backward_step_clip(loss, 0.1)),
    ];
    for (case, algorithm, lr, step) in cases {
        let file = dir.path().join(format!("{case}.safetensors"));
        let expected: HashMap<String, Tensor> =
            Tensor::read_safetensors(file).unwrap().into_iter().collect();
        let scaled = Scaled::new();
        let mut opt = scaled.optimizer(algorithm, lr);
        let mut scales = Vec::new();
        for i in 0..STEPS {
            step(&mut opt, &scaled.loss(i)).unwrap();
            scales.push(opt.loss_scale().unwrap());
        }
        assert_eq!(
            scales,
            Vec::<f64>::try_from(&expected["scales"].to_kind(Kind::Double)).unwrap(),
            "{case}"
        );
        let skipped = opt.skipped_steps().unwrap().int64_value(&[]);
        assert_eq!(skipped, expected["skipped"].int64_value(&[]), "{case}");
        assert!((4..STEPS - 4).contains(&skipped), "{skipped} were skipped");
        for (key, weight) in scaled.tuned.state_dict("default").unwrap() {
            let name = if key.contains("rare_norm") { "rare_norm.weight" } else { "norm.weight" };
            let off = (&weight - &expected[name]).abs().max().double_value(&[]);
            assert!(off <= 2e-6, "{case} {name} is {off} off");
        }
        let state = opt.state_dict().unwrap();
        let steps = state.iter().find(|(key, _)| key == "rare_norm.weight.step").unwrap();
        match expected["rare.step"].double_value(&[]) {
            // torch's SGD does not count.
            -1. => assert!(steps.1.int64_value(&[]) < STEPS * 3 / 4),
            count => assert_eq!(steps.1.double_value(&[]), count, "{case}"),
        }
    }
}

#[test]
fn a_saved_state_goes_on_with_its_scale() {
    let run = |interrupted: bool| {
        let scaled = Scaled::new();
        let mut opt = scaled.optimizer(AdamW::default().into(), 1e-2);
        for i in 0..STEPS {
            if interrupted && i % 7 == 3 {
                let state = opt.state_dict().unwrap();
                opt = scaled.optimizer(AdamW::default().into(), 1e-2);
                opt.load_state_dict(&state).unwrap();
                let again = opt.state_dict().unwrap();
                assert!(
                    named_bits(&again) == named_bits(&state),
                    "saving and loading are inverses"
                );
            }
            opt.backward_step(&scaled.loss(i)).unwrap();
        }
        named_bits(
            &opt.state_dict()
                .unwrap()
                .into_iter()
                .chain(scaled.tuned.state_dict("default").unwrap())
                .collect::<Vec<_>>(),
        )
    };
    assert!(run(true) == run(false));
}

#[test]
fn a_skipped_step_changes_nothing_and_the_next_one_is_as_if_it_had_not_been() {
    let run = |kind: Kind, bad: bool| {
        let net = Net::new(kind);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default().wd(0.1), 1e-2).unwrap();
        opt.set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
        for i in 0..6 {
            if bad && i % 2 == 0 {
                for value in [f64::NAN, f64::INFINITY] {
                    let before = snapshot(&net.vs);
                    opt.backward_step_clip_norm(&(net.loss() * value), 1.).unwrap();
                    assert!(snapshot(&net.vs) == before);
                    // Gradients of user code count too.
                    opt.zero_grad().unwrap();
                    (net.loss() * value).backward();
                    opt.step().unwrap();
                    assert!(snapshot(&net.vs) == before);
                }
            }
            opt.backward_step_clip_norm(&net.loss(), 1.).unwrap();
        }
        assert_eq!(opt.skipped_steps().unwrap().int64_value(&[]), if bad { 12 } else { 0 });
        assert_eq!(opt.loss_scale().unwrap(), if bad { 16. } else { 65536. });
        let state =
            opt.state_dict().unwrap().into_iter().filter(|(key, _)| !key.starts_with("loss_scale"));
        let state: Vec<_> = state.chain(tuned.state_dict("default").unwrap()).collect();
        // A fixed scale goes on from there.
        opt.set_loss_scale(1.).unwrap();
        assert!(opt.state_dict().unwrap().iter().all(|(key, _)| !key.starts_with("loss_scale")));
        opt.backward_step(&net.loss()).unwrap();
        state
    };
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half] {
        for ((key, a), (_, b)) in run(kind, true).into_iter().zip(run(kind, false)) {
            let off = a.to_kind(Kind::Double) - b.to_kind(Kind::Double);
            let off = off.abs().max().double_value(&[]);
            assert!(off < if kind == Kind::Half { 1e-3 } else { 1e-6 }, "{kind:?} {key}: {off}");
        }
    }
}

#[test]
fn settings_and_states_that_cannot_be_meant_are_refused() {
    let scaled = Scaled::new();
    let mut opt = scaled.optimizer(AdamW::default().into(), 1e-2);
    opt.backward_step(&scaled.loss(0)).unwrap();
    let good = DynamicLossScale::default;
    for bad in [
        DynamicLossScale { init_scale: 0., ..good() },
        DynamicLossScale { init_scale: f64::INFINITY, ..good() },
        DynamicLossScale { init_scale: 1e39, ..good() },
        DynamicLossScale { init_scale: 1e-46, ..good() },
        DynamicLossScale { growth_factor: 1., ..good() },
        DynamicLossScale { backoff_factor: 1., ..good() },
        DynamicLossScale { backoff_factor: f64::NAN, ..good() },
        DynamicLossScale { growth_interval: 0, ..good() },
        DynamicLossScale { growth_interval: i64::MAX, ..good() },
    ] {
        let error = opt.set_dynamic_loss_scale(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad:?}");
    }
    let state = opt.state_dict().unwrap();
    for (key, value) in [
        ("loss_scale", 0.),
        ("loss_scale", f64::NAN),
        ("loss_scale", 1e39),
        ("loss_scale", 1e-46),
        ("loss_scale.growth_tracker", -1.),
        ("loss_scale.growth_tracker", 0.5),
        ("loss_scale.skipped", -1.),
    ] {
        let changed = |(k, t): &(String, Tensor)| {
            (k.clone(), if k == key { Tensor::from(value) } else { t.shallow_clone() })
        };
        let changed: Vec<_> = state.iter().map(changed).collect();
        let error = opt.load_state_dict(&changed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{key} {value}");
        assert!(error.to_string().contains(&format!("'{key}'")), "{error}");
        let left: Vec<_> = state
            .iter()
            .filter(|(k, _)| k != key)
            .map(|(k, t)| (k.clone(), t.shallow_clone()))
            .collect();
        assert_eq!(opt.load_state_dict(&left).unwrap_err().kind(), ErrorKind::MissingKeys);
        assert!(named_bits(&opt.state_dict().unwrap()) == named_bits(&state));
    }
    // A state of a run without it leaves the scale; one with it is no state for a fixed scale.
    let without: Vec<_> = state
        .iter()
        .filter(|(key, _)| !key.starts_with("loss_scale"))
        .map(|(k, t)| (k.clone(), t.shallow_clone()))
        .collect();
    opt.load_state_dict(&without).unwrap();
    assert!(named_bits(&opt.state_dict().unwrap()) == named_bits(&state));
    opt.set_loss_scale(8.).unwrap();
    let error = opt.load_state_dict(&state).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedKeys);
    assert!(error.to_string().contains("set_dynamic_loss_scale"), "{error}");
}
