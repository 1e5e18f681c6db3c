//! The state of an optimiser comes back as it was, and one that no run leaves is refused whole.

use crate::nets::{named_bits, Net};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer};
use proptest::prelude::*;
use tch::{nn, Device, Kind, Tensor};

#[test]
fn a_saved_state_goes_on_as_if_nothing_had_happened() {
    for algorithm in [
        AdamW::default().amsgrad(true).into(),
        ln_tuning::Algorithm::Sgd(nn::sgd(0.9, 0., 0., false)),
    ] {
        let run = |interrupted: bool| {
            let net = Net::new(Kind::BFloat16);
            let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
            let mut opt = tuned.optimizer(algorithm, 1e-2).unwrap();
            for step in 0..6 {
                if interrupted && step == 3 {
                    let state = opt.state_dict().unwrap();
                    opt = tuned.optimizer(algorithm, 1e-2).unwrap();
                    opt.load_state_dict(&state).unwrap();
                }
                opt.backward_step(&net.loss()).unwrap();
            }
            named_bits(&tuned.state_dict("default").unwrap())
        };
        assert_eq!(run(true), run(false), "{algorithm:?}");
    }
}

#[test]
fn a_state_that_does_not_fit_the_adapter_is_refused_whole() {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    let state = opt.state_dict().unwrap();
    let changed = |change: fn(&mut Vec<(String, Tensor)>)| {
        let mut changed: Vec<_> = state.iter().map(|(k, t)| (k.clone(), t.copy())).collect();
        change(&mut changed);
        changed
    };
    for (bad, kind) in [
        (changed(|s| drop(s.pop())), ErrorKind::MissingKeys),
        (changed(|s| s.push(("x".into(), Tensor::from(1.0)))), ErrorKind::UnexpectedKeys),
        (changed(|s| s[1].1 = Tensor::from(1.0)), ErrorKind::ShapeMismatch),
    ] {
        assert_eq!(opt.load_state_dict(&bad).unwrap_err().kind(), kind);
        assert_eq!(named_bits(&opt.state_dict().unwrap()), named_bits(&state));
    }
}

type State = Vec<(String, Tensor)>;

/// An optimiser after one step, and its state.
fn stepped() -> (Net, LnTuningModel, Optimizer, State) {
    let net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default().amsgrad(true), 1e-2).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    let state = opt.state_dict().unwrap();
    (net, tuned, opt, state)
}

fn with(state: &State, key: &str, value: Tensor) -> State {
    let changed = |(k, t): &(String, Tensor)| match k == key {
        true => (k.clone(), value.shallow_clone()),
        false => (k.clone(), t.shallow_clone()),
    };
    state.iter().map(changed).collect()
}

#[test]
fn a_state_that_no_run_leaves_is_refused_with_the_key_and_what_was_expected() {
    let (net, _tuned, mut opt, state) = stepped();
    let f64s = |value: f64| Tensor::full([8], value, (Kind::Double, Device::Cpu));
    let mut cases: Vec<(&str, Tensor, ErrorKind)> = vec![
        ("step", Tensor::from(-1_i64), ErrorKind::InvalidArgument),
        ("step", Tensor::from(i64::MAX), ErrorKind::InvalidArgument),
        ("step", Tensor::from((1_i64 << 53) + 2), ErrorKind::InvalidArgument),
        ("step", Tensor::from(1.5), ErrorKind::InvalidArgument),
        ("step", Tensor::from(1e300), ErrorKind::InvalidArgument),
        ("step", Tensor::from(f64::NAN), ErrorKind::NonFinite),
        ("step", Tensor::from(f32::INFINITY), ErrorKind::NonFinite),
        ("step", Tensor::from(true), ErrorKind::KindMismatch),
        ("step", Tensor::from_slice(&[1_i64]), ErrorKind::ShapeMismatch),
        ("step", Tensor::new(), ErrorKind::MissingKeys),
        ("exp_avg", f64s(1.).to_kind(Kind::ComplexFloat), ErrorKind::KindMismatch),
        ("exp_avg", f64s(1.).to_kind(Kind::Int64), ErrorKind::KindMismatch),
        ("exp_avg_sq", f64s(-1e-30), ErrorKind::InvalidArgument),
        ("max_exp_avg_sq", f64s(-1.), ErrorKind::InvalidArgument),
        ("exp_avg", f64s(1.).view([2, 4]), ErrorKind::ShapeMismatch),
    ];
    for name in ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] {
        // The last does not fit into f32.
        for value in [f64::NAN, f64::INFINITY, 1e39] {
            cases.push((name, f64s(value), ErrorKind::NonFinite));
        }
    }
    for (name, value, kind) in cases {
        let key = format!("norm1.weight.{name}");
        let shown = format!("{value:?}");
        let error = opt.load_state_dict(&with(&state, &key, value)).unwrap_err();
        assert_eq!(error.kind(), kind, "{key} {shown}: {error}");
        assert!(error.to_string().contains(&format!("'{key}'")), "{error}");
        assert!(error.to_string().contains("expected"), "{error}");
        assert_eq!(named_bits(&opt.state_dict().unwrap()), named_bits(&state), "{key} {shown}");
    }
    let sparse = with(&state, "norm1.weight.exp_avg", f64s(1.).to_sparse(None, None::<i64>, None));
    let error = opt.load_state_dict(&sparse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::KindMismatch);
    assert!(error.to_string().contains("sparse Double, expected dense"), "{error}");
    let mut twice = with(&state, "", Tensor::new());
    twice.push(("norm1.bias.step".into(), Tensor::from(7_i64)));
    let error = opt.load_state_dict(&twice).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateKey);
    assert!(error.to_string().contains("'norm1.bias.step'"), "{error}");
    opt.backward_step(&net.loss()).unwrap();
}

#[test]
fn steps_are_taken_in_every_kind_that_torch_saves() {
    let (_net, _tuned, mut opt, state) = stepped();
    for step in [Tensor::from(5_f32), Tensor::from(5_f64), Tensor::from(5_i32), Tensor::from(5_i64)]
    {
        opt.load_state_dict(&with(&state, "norm2.bias.step", step)).unwrap();
        let loaded = opt.state_dict().unwrap();
        let step = &loaded.iter().find(|(key, _)| key == "norm2.bias.step").unwrap().1;
        assert_eq!((step.kind(), step.int64_value(&[])), (Kind::Int64, 5));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any change of one number is either refused, with nothing changed, or comes back as it was given.
    #[test]
    fn a_number_is_refused_or_comes_back(entry in 0usize..16, bits in any::<u64>(), wide in any::<bool>()) {
        let (_net, _tuned, mut opt, state) = stepped();
        let value = if wide { f64::from_bits(bits) } else { f64::from(f32::from_bits(bits as u32)) };
        let key = state[entry].0.clone();
        let value = Tensor::full(state[entry].1.size(), value, (Kind::Double, Device::Cpu));
        let given = with(&state, &key, value.shallow_clone());
        let loaded = opt.load_state_dict(&given);
        let after = opt.state_dict().unwrap();
        if loaded.is_err() {
            prop_assert_eq!(named_bits(&after), named_bits(&state));
        } else {
            let kind = state[entry].1.kind();
            let found = after[entry].1.to_kind(Kind::Double);
            prop_assert_eq!(found, value.to_kind(kind).to_kind(Kind::Double));
        }
    }
}

#[test]
fn a_state_in_a_file_comes_back_and_a_broken_file_changes_nothing() {
    let (net, _tuned, mut opt, state) = stepped();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("optimizer.safetensors");
    opt.save(&path).unwrap();
    opt.backward_step(&net.loss()).unwrap();
    let later = named_bits(&opt.state_dict().unwrap());
    let whole = std::fs::read(&path).unwrap();
    let bad = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut infinite = whole.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let text = String::from_utf8_lossy(&whole).replacen("norm1.bias.step", "norm2.bias.step", 1);
    let header = whole.len().min(8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize);
    let mut twice = whole[..8].to_vec();
    twice.extend(&text.as_bytes()[text.find('{').unwrap()..][..header - 8]);
    twice.extend(&whole[header..]);
    for (path, kind) in [
        (bad("cut", &whole[..whole.len() - 3]), ErrorKind::CorruptFile),
        (bad("empty", b""), ErrorKind::CorruptFile),
        (bad("infinite", &infinite), ErrorKind::NonFinite),
        (bad("twice", &twice), ErrorKind::DuplicateKey),
        (dir.path().join("none"), ErrorKind::MissingFile),
    ] {
        let error = opt.load(&path).unwrap_err();
        assert_eq!(error.kind(), kind, "{}: {error}", path.display());
        assert_eq!(named_bits(&opt.state_dict().unwrap()), later);
    }
    opt.load(&path).unwrap();
    assert_eq!(named_bits(&opt.state_dict().unwrap()), named_bits(&state));
}
