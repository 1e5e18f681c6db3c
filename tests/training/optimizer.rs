//! The optimisers compute what those of PyTorch do, and refuse what cannot be meant.

use std::collections::HashMap;

use crate::common;
use crate::nets::{bits, named_bits, snapshot, Net};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer, Precision, Sgd};
use tch::{nn, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

struct Problem {
    vs: nn::VarStore,
    data: HashMap<String, Tensor>,
}

impl Problem {
    fn new() -> Problem {
        tch::set_num_threads(1);
        let wave = |n: i64, phase: f64| (Tensor::arange(n, CPU) + phase).sin();
        let data = HashMap::from([
            ("norm.weight".to_owned(), wave(7, 0.3) + 1.0),
            ("norm.bias".to_owned(), wave(7, 0.7) * 0.1),
            ("rare_norm.weight".to_owned(), wave(5, 1.1) + 1.0),
            ("x".to_owned(), wave(70, 0.0).view([10, 7])),
            ("y".to_owned(), wave(70, 2.0).view([10, 7]) * 3.0),
            ("z".to_owned(), wave(5, 0.2).abs()),
        ]);
        let vs = nn::VarStore::new(Device::Cpu);
        let _ = (vs.root() / "norm").var_copy("weight", &data["norm.weight"]);
        let _ = (vs.root() / "norm").var_copy("bias", &data["norm.bias"]);
        let _ = (vs.root() / "rare_norm").var_copy("weight", &data["rare_norm.weight"]);
        Problem { vs, data }
    }

    fn loss(&self, step: usize) -> Tensor {
        let v = self.vs.variables();
        let d = &self.data;
        let loss =
            (&d["x"] * &v["norm.weight"] + &v["norm.bias"] - &d["y"]).square().mean(Kind::Float);
        match step % 3 {
            1 => loss + (v["rare_norm.weight"].square() * &d["z"]).sum(Kind::Float),
            _ => loss,
        }
    }
}

#[test]
fn a_hundred_steps_agree_with_torch_optim() {
    let dir = tempfile::tempdir().unwrap();
    let problem = Problem::new();
    let tensors: Vec<(&String, &Tensor)> = problem.data.iter().collect();
    Tensor::write_safetensors(&tensors, dir.path().join("problem.safetensors")).unwrap();
    common::run_python("optimizers.py", &[dir.path().to_str().unwrap()]);

    type Step = fn(&mut Optimizer, &Tensor) -> ln_tuning::Result<()>;
    let plain: Step = |opt, loss| opt.backward_step(loss);
    let adamw = AdamW::default;
    let cases: Vec<(&str, ln_tuning::Algorithm, f64, Step)> = vec![
        ("adamw", adamw().into(), 1e-2, plain),
        ("adamw_decay", adamw().wd(0.1).beta1(0.8).beta2(0.99).eps(1e-6).into(), 1e-2, plain),
        ("adamw_amsgrad", adamw().amsgrad(true).into(), 1e-2, plain),
        ("adamw_clipped", adamw().into(), 1e-2, |opt, loss| opt.backward_step_clip_norm(loss, 0.5)),
        ("adamw_clamped", adamw().into(), 1e-2, |opt, loss| opt.backward_step_clip(loss, 0.1)),
        ("sgd", Sgd::default().into(), 1e-3, plain),
        ("sgd_momentum", nn::sgd(0.9, 0.1, 0.1, false).into(), 1e-3, plain),
        ("sgd_nesterov", nn::sgd(0.9, 0., 0., true).into(), 1e-3, plain),
    ];
    for (case, algorithm, lr, step) in cases {
        let problem = Problem::new();
        let tuned = LnTuningModel::new(&problem.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(algorithm, lr).unwrap();
        for i in 0..100 {
            step(&mut opt, &problem.loss(i)).unwrap();
        }
        let variables = problem.vs.variables();
        for (name, expected) in
            Tensor::read_safetensors(dir.path().join(format!("{case}.safetensors"))).unwrap()
        {
            let start = &problem.data[&name];
            assert!(
                (&expected - start).abs().max().double_value(&[]) > 1e-3,
                "{case} {name} did not move"
            );
            let difference = (&variables[&name] - &expected).abs().max().double_value(&[]);
            assert!(difference <= 1e-6, "{case} {name} is {difference} off");
        }
    }
}

#[test]
fn accumulated_gradients_are_those_of_the_mean() {
    for kind in [Kind::Float, Kind::Double] {
        let results: Vec<_> = [1, 4]
            .map(|parts| {
                let net = Net::new(kind);
                let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
                let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
                opt.set_accumulation(parts).unwrap();
                for _ in 0..3 {
                    let before = snapshot(&net.vs);
                    for part in 0..parts {
                        assert_eq!(snapshot(&net.vs), before, "no update before part {part}");
                        opt.backward_step_clip_norm(&net.loss(), 1.0).unwrap();
                    }
                    assert_ne!(snapshot(&net.vs), before);
                }
                tuned.state_dict("default").unwrap()
            })
            .into_iter()
            .collect();
        for ((key, a), (_, b)) in results[0].iter().zip(&results[1]) {
            let difference = (a - b).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{key} in {kind:?}: {difference}");
        }
    }
}

#[test]
fn gradients_made_by_user_code_count_as_our_own() {
    let results = [true, false].map(|own| {
        let net = Net::new(Kind::BFloat16);
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        for _ in 0..3 {
            if own {
                opt.backward_step_clip_norm(&net.loss(), 1.0).unwrap();
            } else {
                opt.zero_grad().unwrap();
                net.loss().backward();
                let _norm = opt.clip_grad_norm(1.0).unwrap();
                opt.step().unwrap();
            }
        }
        named_bits(&tuned.state_dict("default").unwrap())
    });
    assert_eq!(results[0], results[1]);
}

#[test]
fn a_loss_without_a_gradient_is_refused() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let before = snapshot(&net.vs);
    let stray = Tensor::ones([], CPU).set_requires_grad(true);
    for loss in
        [net.logits(), tch::no_grad(|| net.loss()), Tensor::from(1.0), Tensor::new(), &stray * 2.0]
    {
        assert_eq!(opt.backward_step(&loss).unwrap_err().kind(), ErrorKind::NoGradient);
    }
    assert_eq!(opt.step().unwrap_err().kind(), ErrorKind::NoGradient);
    assert_eq!(opt.clip_grad_norm(1.0).unwrap_err().kind(), ErrorKind::NoGradient);
    assert_eq!(snapshot(&net.vs), before);
}

#[test]
fn settings_out_of_range_are_refused() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    for lr in [-1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(
            tuned.optimizer(AdamW::default(), lr).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }
    for bad in
        [AdamW::default().beta1(1.0), AdamW::default().eps(-1.0), AdamW::default().wd(f64::NAN)]
    {
        assert_eq!(tuned.optimizer(bad, 1e-3).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert!(tuned.optimizer(nn::sgd(0., 0., 0., true), 1e-3).is_err());
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    assert!(opt.set_lr(-1.).is_err() && opt.lr() == 1e-3);
    assert!(opt.set_accumulation(0).is_err());
    for scale in [0., -1., f64::NAN, 1e39, 1e-46] {
        assert!(opt.set_loss_scale(scale).is_err(), "{scale}");
    }
    assert!(opt.set_momentum(2.).is_err());
    assert!(opt.set_weight_decay(-1.).is_err());
    for max in [0., -1., f64::NAN] {
        assert_eq!(
            opt.backward_step_clip_norm(&net.loss(), max).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }
}

#[test]
fn the_clipped_norm_is_returned_as_it_was() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward(&net.loss()).unwrap();
    let norm = opt.grad_norm().unwrap().double_value(&[]);
    assert_eq!(opt.clip_grad_norm(norm / 2.).unwrap().double_value(&[]), norm);
    let clipped = opt.grad_norm().unwrap().double_value(&[]);
    assert!((clipped / norm - 0.5).abs() < 1e-4);
    assert_eq!(opt.clip_grad_norm(norm).unwrap().double_value(&[]), clipped);
    assert!((opt.grad_norm().unwrap().double_value(&[]) / clipped - 1.).abs() < 1e-6);
}

/// A model of RMSNorms, as in Llama: weights at 1 and no biases, in bf16.
struct Rms {
    vs: nn::VarStore,
    x: Tensor,
    y: Tensor,
}

impl Rms {
    fn new() -> Rms {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let root = vs.root();
        let wave = |n: i64, m: i64| ((Tensor::arange(n * m, CPU) * 1.3).sin() * 0.5).view([n, m]);
        for (name, rows) in [("up", 64), ("out", 8)] {
            let _ =
                (&root / name).var_copy("weight", &wave(rows, if name == "up" { 32 } else { 64 }));
        }
        let _ = (&root / "norm1").var_copy("weight", &Tensor::ones([32], CPU));
        let _ = (&root / "norm2").var_copy("weight", &Tensor::ones([64], CPU));
        vs.bfloat16();
        let x = (Tensor::arange(64 * 32, CPU) * 0.7).sin().view([64, 32]).to_kind(Kind::BFloat16);
        let y = Tensor::arange(64, (Kind::Int64, Device::Cpu)).remainder(8);
        Rms { vs, x, y }
    }

    fn loss(&self) -> Tensor {
        let v = self.vs.variables();
        let norm = |x: &Tensor, name: &str| {
            let weight = &v[name];
            x.f_rms_norm(weight.size(), Some(weight), None).unwrap()
        };
        let hidden = norm(&self.x, "norm1.weight").linear(&v["up.weight"], None::<Tensor>).relu();
        let logits = norm(&hidden, "norm2.weight").linear(&v["out.weight"], None::<Tensor>);
        logits.to_kind(Kind::Float).cross_entropy_for_logits(&self.y)
    }
}

/// The setting of PEFT's own benchmark: norm weights at 1, bf16, AdamW at 1e-4; 300 steps.
#[test]
fn masters_train_in_bf16_where_the_models_own_kind_does_not() {
    let mut results = Vec::new();
    for precision in [Precision::Master, Precision::Model] {
        let model = Rms::new();
        let options = ln_tuning::AdapterOptions::default().precision(precision);
        let config = LnTuningConfig::default();
        let tuned = LnTuningModel::with_options(&model.vs, config, "default", &options).unwrap();
        let before = tuned.state_dict("default").unwrap();
        let first = model.loss().double_value(&[]);
        let mut opt = tuned.optimizer(AdamW::default().wd(0.1), 1e-4).unwrap();
        for _ in 0..300 {
            opt.backward_step_clip_norm(&model.loss(), 1.0).unwrap();
        }
        let after = tuned.state_dict("default").unwrap();
        let (mut moved, mut all) = (0, 0);
        for ((_, a), (_, b)) in before.iter().zip(&after) {
            moved += a.ne_tensor(b).sum(Kind::Int64).int64_value(&[]);
            all += a.numel() as i64;
        }
        let last = model.loss().double_value(&[]);
        println!("{precision:?}: {moved} of {all} weights moved, loss {first:.4} -> {last:.4}");
        results.push((moved, all, first, last, bits(&after[0].1).0));
    }
    let (moved, all, first, last, kind) = results[0];
    assert_eq!((moved, kind), (all, Kind::Float), "every master moved");
    assert!(last < first - 0.01, "and the loss fell");
    let (moved, _, first, last, kind) = results[1];
    assert_eq!((moved, kind), (0, Kind::BFloat16), "none moved in the model's kind");
    assert_eq!(first, last);
}

#[test]
fn gradients_are_given_by_name_and_missing_ones_are_told() {
    let problem = Problem::new();
    let config = LnTuningConfig::default().target_modules(["norm", "rare_norm"]);
    let tuned = LnTuningModel::new(&problem.vs, config).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    assert!(opt.gradients().unwrap().iter().all(|(_, gradient)| gradient.is_none()));
    let inputs =
        ["norm.weight", "norm.bias"].map(|name| problem.vs.variables()[name].shallow_clone());
    let expected = Tensor::run_backward(&[problem.loss(0)], &inputs, false, false);
    opt.backward(&problem.loss(0)).unwrap();
    let found: HashMap<String, Option<Tensor>> = opt.gradients().unwrap().into_iter().collect();
    assert_eq!(found.len(), 3);
    for (name, expected) in ["norm.weight", "norm.bias"].into_iter().zip(&expected) {
        assert_eq!(bits(found[name].as_ref().unwrap()), bits(expected), "{name}");
    }
    assert!(found["rare_norm.weight"].is_none());
    opt.zero_grad().unwrap();
    assert!(opt.gradients().unwrap().iter().all(|(_, gradient)| gradient.is_none()));
}

#[test]
fn a_scaled_loss_has_the_same_gradients_and_those_of_f16_do_not_vanish() {
    tch::set_num_threads(1);
    for (kind, factor, scale) in [(Kind::Float, 1e-2, 8.), (Kind::Half, 1e-9, 65536. * 1024.)] {
        let vs = nn::VarStore::new(Device::Cpu);
        let weight = vs.root().sub("norm").ones("weight", &[4]);
        let mut stored = vs.root().sub("norm").get("weight").unwrap();
        if kind == Kind::Half {
            let half = stored.detach().to_kind(Kind::Half);
            stored.set_data(&half);
        }
        let config = LnTuningConfig::default().target_modules(["norm"]);
        let tuned = LnTuningModel::new(&vs, config).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        let x = Tensor::from_slice(&[1f32, 2., -3., 4.]).to_kind(kind);
        // Of a mean over very many: the gradient of the product is `factor`.
        let loss = || ((&x * &weight).to_kind(Kind::Float) * factor).sum(Kind::Float);
        let gradient = |opt: &mut Optimizer| {
            opt.gradients().unwrap().remove(0).1.unwrap().to_kind(Kind::Double) / factor
        };
        opt.backward(&loss()).unwrap();
        let plain = gradient(&mut opt);
        opt.zero_grad().unwrap();
        opt.set_loss_scale(scale).unwrap();
        opt.backward(&loss()).unwrap();
        let again = opt.backward_recompute(&Recompute::default(), |_| Ok(loss())).unwrap();
        assert_eq!(again, loss(), "the loss comes back without the scale");
        let scaled = gradient(&mut opt) / 2.;
        let expected = x.to_kind(Kind::Double);
        let off = |found: &Tensor| (found - &expected).abs().max().double_value(&[]);
        assert!(off(&scaled) < 1e-2, "{kind:?}: {scaled}");
        match kind {
            Kind::Half => assert!(off(&plain) > 0.5, "they have not vanished: {plain}"),
            _ => assert!(off(&plain) < 1e-6, "{plain}"),
        }
        // Gradients that were computed elsewhere are taken as they are.
        opt.zero_grad().unwrap();
        opt.backward_with(|_| Ok(((), vec![x.shallow_clone()]))).unwrap();
        assert!(off(&(gradient(&mut opt) * factor)) < 1e-6);
        for bad in [0., -1., f64::NAN, f64::INFINITY] {
            let error = opt.set_loss_scale(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }
}
