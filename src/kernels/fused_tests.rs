use std::process::Command;

use tch::{no_grad, Device, IndexOp, Kind, Tensor};

use super::*;
use crate::device::without_fused_functions;

const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn off(found: &Tensor, expected: &Tensor) -> f64 {
    if found.numel() == 0 {
        return 0.;
    }
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[])
}

/// Values and gradients are those of `operators` in f64, but for the rounding of the inputs' kind. Undefined inputs are
/// left out.
fn agree(
    what: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Vec<Tensor>,
    operators: impl Fn(&[Tensor]) -> Vec<Tensor>,
) {
    let kind = inputs[0].kind();
    let all = |inputs: Vec<Tensor>, f: &dyn Fn(&[Tensor]) -> Vec<Tensor>, upstream: &[Tensor]| {
        let outputs = f(&inputs);
        let products = outputs
            .iter()
            .zip(upstream)
            .map(|(y, up)| (y * up.to_kind(y.kind())).sum(Kind::Double));
        let root = products.reduce(|a, b| a + b).unwrap();
        let defined: Vec<&Tensor> = inputs.iter().filter(|x| x.defined()).collect();
        let gradients = Tensor::run_backward(&[root], &defined, false, false);
        (outputs, gradients)
    };
    // Views stay views.
    let leaves = |kind: Option<Kind>| -> Vec<Tensor> {
        let leaf = |x: &Tensor| match (x.defined(), kind) {
            (false, _) => Tensor::new(),
            (true, None) => x.detach().set_requires_grad(true),
            (true, Some(kind)) => x.detach().to_kind(kind).set_requires_grad(true),
        };
        inputs.iter().map(leaf).collect()
    };
    let shapes: Vec<_> = no_grad(|| fused(inputs)).iter().map(Tensor::size).collect();
    let upstream: Vec<Tensor> = shapes.iter().map(|shape| random(shape, kind)).collect();
    let (found, found_gradients) = all(leaves(None), &fused, &upstream);
    let (expected, expected_gradients) = all(leaves(Some(Kind::Double)), &operators, &upstream);
    let epsilon = match kind {
        Kind::Float => 3e-6,
        // Scores and weights of attention are rounded too.
        Kind::BFloat16 => 2f64.powi(-6),
        _ => 2f64.powi(-9),
    };
    assert_eq!(found.len(), expected.len());
    for (found, expected) in
        found.iter().zip(&expected).chain(found_gradients.iter().zip(&expected_gradients))
    {
        assert_eq!(found.size(), expected.size(), "{what}");
        assert_eq!(found.kind(), kind, "{what}");
        let scale = if expected.numel() == 0 { 0. } else { expected.abs().max().double_value(&[]) };
        let off = off(found, expected);
        assert!(
            off <= epsilon * scale.max(1.),
            "{what} in {kind:?}, {:?}: {off} off, of {scale}",
            found.size()
        );
    }
    // Without a graph, the same bits.
    let bare = no_grad(|| fused(inputs));
    bare.iter().zip(&found).for_each(|(bare, found)| assert_eq!(*bare, found.detach(), "{what}"));
}

fn norm_of_operators(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    form: NormForm,
    eps: f64,
) -> Tensor {
    let centred = if form == NormForm::Layer {
        x - x.mean_dim(-1, true, x.kind())
    } else {
        x.shallow_clone()
    };
    let mut y = &centred / (centred.square().mean_dim(-1, true, x.kind()) + eps).sqrt();
    if weight.defined() {
        y *= if form == NormForm::RmsFromOne { weight + 1. } else { weight.shallow_clone() };
    }
    if bias.defined() {
        y + bias
    } else {
        y
    }
}

/// Inputs of this shape: dense, in columns, a part of wider rows, and one row for all.
fn layouts(shape: &[i64], kind: Kind) -> Vec<Tensor> {
    let size = *shape.last().unwrap();
    let mut wider = shape.to_vec();
    *wider.last_mut().unwrap() = size + 3;
    let columns: Vec<i64> = shape.iter().rev().copied().collect();
    let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
    let one: Vec<i64> = vec![1; shape.len() - 1].into_iter().chain([size]).collect();
    vec![
        random(shape, kind),
        random(&columns, kind).permute(reversed),
        random(&wider, kind).narrow(-1, 2, size),
        random(&one, kind).expand(shape, false),
    ]
}

#[test]
fn norms_are_those_of_operators() {
    tch::manual_seed(1);
    for kind in KINDS {
        for shape in [
            vec![3, 1],
            vec![2, 5, 7],
            vec![70, 513],
            vec![0, 8],
            vec![2, 3, 4, 64],
            vec![7],
            vec![2, 40_000],
        ] {
            let size = *shape.last().unwrap();
            for form in [NormForm::Rms, NormForm::RmsFromOne, NormForm::Layer] {
                for (weighted, biased) in [(true, true), (true, false), (false, false)] {
                    if biased && form != NormForm::Layer || size > 1000 && !weighted {
                        continue;
                    }
                    let layouts = layouts(&shape, kind);
                    let few = if size > 1000 { 1 } else { layouts.len() };
                    for x in &layouts[..few] {
                        let given =
                            |there: bool| if there { random(&[size], kind) } else { Tensor::new() };
                        let (weight, bias) = (given(weighted), given(biased));
                        let there = |x: &Tensor| x.defined().then(|| x.shallow_clone());
                        // Variance must not be so small that its gradient is large.
                        let eps = 1e-2;
                        let inputs =
                            [x.shallow_clone(), weight.shallow_clone(), bias.shallow_clone()];
                        agree(
                            &format!("{form:?}"),
                            &inputs,
                            |of| {
                                let (weight, bias) = (there(&of[1]), there(&of[2]));
                                let y = norm(&of[0], weight.as_ref(), bias.as_ref(), form, eps);
                                vec![y.unwrap().unwrap()]
                            },
                            |of| vec![norm_of_operators(&of[0], &of[1], &of[2], form, eps)],
                        );
                        let added = random(&shape, kind);
                        let inputs = [x.shallow_clone(), weight, bias, added];
                        agree(
                            &format!("{form:?} of a sum"),
                            &inputs,
                            |of| {
                                let (weight, bias) = (there(&of[1]), there(&of[2]));
                                let both = added_norm(
                                    &of[0],
                                    &of[3],
                                    weight.as_ref(),
                                    bias.as_ref(),
                                    form,
                                    eps,
                                );
                                let (sum, norm) = both.unwrap().unwrap();
                                vec![sum, norm]
                            },
                            |of| {
                                let sum = &of[0] + &of[3];
                                // The sum is rounded to its kind.
                                let rounded = (sum.to_kind(kind).to_kind(Kind::Double) - &sum)
                                    .detach()
                                    + &sum;
                                let norm = norm_of_operators(&rounded, &of[1], &of[2], form, eps);
                                vec![sum, norm]
                            },
                        );
                    }
                }
            }
        }
    }
}

fn activated(x: &Tensor, gate: Gate) -> Tensor {
    match gate {
        Gate::Gelu => x.gelu("none"),
        Gate::GeluTanh => x.gelu("tanh"),
        Gate::QuickGelu => (x * 1.702).sigmoid() * x,
        Gate::Relu => x.relu(),
        Gate::Silu => x.silu(),
    }
}

const GATES: [Gate; 5] = [Gate::Gelu, Gate::GeluTanh, Gate::QuickGelu, Gate::Relu, Gate::Silu];

#[test]
fn gates_are_those_of_operators() {
    tch::manual_seed(2);
    for kind in KINDS {
        for shape in [
            vec![3, 1],
            vec![2, 5, 7],
            vec![9, 513],
            vec![0, 8],
            vec![4, 0],
            vec![7],
            vec![2, 20_000],
        ] {
            for gate in GATES {
                for (x, up) in layouts(&shape, kind).iter().zip(layouts(&shape, kind).iter().rev())
                {
                    let inputs = [x * 3., up.shallow_clone()];
                    agree(
                        &format!("{gate:?}"),
                        &inputs,
                        |of| vec![gated(&of[0], &of[1], gate).unwrap().unwrap()],
                        |of| vec![activated(&of[0], gate) * &of[1]],
                    );
                }
                let mut double = shape.clone();
                *double.last_mut().unwrap() *= 2;
                for both in layouts(&double, kind) {
                    agree(
                        &format!("{gate:?} in one"),
                        &[both],
                        |of| vec![gated_in_one(&of[0], gate).unwrap().unwrap()],
                        |of| {
                            let both = of[0].chunk(2, -1);
                            vec![activated(&both[0], gate) * &both[1]]
                        },
                    );
                }
            }
        }
    }
}

/// All numbers of f32 that a gate meets, and those that are none.
#[test]
fn gates_follow_operators_to_the_ends_of_f32() {
    let numbers = [
        0., -0., 1e-30, -1e-30, 1e-41, 5.5, -5.5, 20., -20., 88., -88., 104., -104., 3e4, -3e4,
        1e19, -1e19,
    ];
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let all: Vec<f32> = numbers.iter().chain(&special).map(|x| *x as f32).collect();
    let spread = Tensor::linspace(-120., 120., 4801, (Kind::Float, Device::Cpu));
    let x = Tensor::cat(&[Tensor::from_slice(&all), spread], 0);
    for gate in GATES {
        let found = gated(&x, &x.ones_like(), gate).unwrap().unwrap();
        let expected = activated(&x, gate);
        // libtorch's gelu of infinity is not a number.
        let finite = x.isfinite();
        assert_eq!(expected.isfinite().logical_and(&finite), finite, "{gate:?}");
        assert_eq!(found.isnan().logical_and(&x.isnan()), x.isnan(), "{gate:?}");
        let off = (&found - &expected).abs() / expected.abs().clamp_min(1.);
        let off = off.masked_fill(&finite.logical_not(), 0.).max().double_value(&[]);
        assert!(off <= 1e-6, "{gate:?}: {off} off");
    }
}

fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor, side_by_side: bool) -> Tensor {
    let dims = cos.size()[cos.dim() - 1];
    let part = x.narrow(-1, 0, dims);
    let other = if side_by_side {
        part.unflatten(-1, [dims / 2, 2]).flip([-1]).flatten(-2, -1)
    } else {
        part.roll([dims / 2], [-1])
    };
    let rest = x.narrow(-1, dims, x.size()[3] - dims);
    Tensor::cat(&[part * cos + other * sin, rest], -1)
}

#[test]
fn rotations_are_those_of_operators() {
    tch::manual_seed(3);
    for kind in KINDS {
        for (batch, length, heads, dim, dims) in [
            (1, 1, 1, 2, 2),
            (2, 7, 3, 14, 14),
            (2, 5, 2, 64, 64),
            (2, 5, 2, 80, 32),
            (0, 3, 2, 8, 8),
            (3, 4, 1, 22, 6),
        ] {
            for (side_by_side, tables) in
                [(false, vec![length, 1, dims]), (true, vec![batch, length, 1, dims])]
            {
                let (cos, sin) = (random(&tables, kind), random(&tables, kind));
                let parts = random(&[batch, length, 3 * heads, dim], kind);
                let plain = random(&[batch, length, heads, dim], kind);
                let across = random(&[batch, heads, length, dim], kind).transpose(1, 2);
                for q in [plain, across, parts.narrow(2, heads, heads)] {
                    let inputs = [q, parts.shallow_clone()];
                    agree(
                        "rotation",
                        &inputs,
                        |of| {
                            let angles = (cos.shallow_clone(), sin.shallow_clone());
                            turned([&of[0], &of[1]], &angles, side_by_side).unwrap().unwrap().into()
                        },
                        |of| {
                            let turn = |x: &Tensor| {
                                let wide = |x: &Tensor| x.to_kind(x.kind()).to_kind(Kind::Double);
                                rotated(x, &wide(&cos), &wide(&sin), side_by_side)
                            };
                            vec![turn(&of[0]), turn(&of[1])]
                        },
                    );
                }
            }
        }
    }
}

/// The plain way, with safe zeros where no key is seen.
fn attended(of: &[Tensor], how: Attended) -> Tensor {
    let (heads, length, keys) = (of[0].size()[1], of[0].size()[2], of[1].size()[2]);
    let repeat = |x: &Tensor| x.repeat_interleave_self_int(heads / x.size()[1], 1, None);
    let mut scores = of[0].matmul(&repeat(&of[1]).transpose(2, 3)) * how.scale;
    if let Some(cap) = how.cap {
        scores = (scores / cap).tanh() * cap;
    }
    let seen = match how.mask {
        Some(mask) => mask.shallow_clone(),
        None => Tensor::ones([length, keys], (Kind::Bool, Device::Cpu)).tril(if how.causal {
            0
        } else {
            keys
        }),
    };
    let seen = seen.expand_as(&scores);
    let weights =
        scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, Kind::Double);
    let none = seen.any_dim(-1, true).logical_not();
    weights.masked_fill(&none, 0.).matmul(&repeat(&of[2]))
}

#[test]
fn attention_is_that_of_operators() {
    tch::manual_seed(4);
    for kind in KINDS {
        for (batch, heads, kv_heads, length, keys, dim) in
            [(1, 1, 1, 1, 1, 1), (2, 6, 2, 40, 40, 8), (2, 4, 4, 7, 33, 16), (1, 2, 1, 3, 513, 7)]
        {
            let make = |heads: i64, length: i64| {
                random(&[batch, length, heads, dim], kind).transpose(1, 2)
            };
            let inputs = [make(heads, length), make(kv_heads, keys), make(kv_heads, keys)];
            let square = length == keys;
            let some = |shape: &[i64]| Tensor::rand(shape, (Kind::Float, Device::Cpu)).gt(0.4);
            let whole = some(&[length, keys]);
            let rows = some(&[batch, 1, length, keys]);
            let padding = some(&[batch, 1, 1, keys]);
            // The first query sees nothing.
            let none = some(&[length, keys + 5]).narrow(1, 5, keys);
            let _ = none.i(0).fill_(0.);
            let masks = [None, Some(&whole), Some(&rows), Some(&padding), Some(&none)];
            for (mask, cap) in masks.into_iter().flat_map(|mask| [(mask, None), (mask, Some(1.5))])
            {
                let hows = [true, false].map(|causal| Attended { mask, causal, scale: 0.4, cap });
                for how in hows.into_iter().filter(|how| !how.causal || square && mask.is_none()) {
                    agree(
                        &format!("{how:?}"),
                        &inputs,
                        |of| vec![attend(&of[0], &of[1], &of[2], how).unwrap().unwrap()],
                        |of| vec![attended(of, how)],
                    );
                }
            }
        }
    }
}

#[test]
fn cross_entropy_is_that_of_operators() {
    tch::manual_seed(5);
    let f64s = |x: &Tensor| x.to_kind(Kind::Double);
    for kind in KINDS {
        for (rows, classes) in [(1, 1), (5, 7), (3, 513), (0, 4), (4, 40_000)] {
            let targets = Tensor::randint(classes, [rows, 1], (Kind::Int64, Device::Cpu));
            let bias = random(&[classes], Kind::Float);
            for (bias, scale, cap, smoothing, z_loss) in [
                (None, 1., None, 0., 0.),
                (Some(&bias), 0.7, Some(2.), 0.1, 0.2),
                (None, 3., None, 0.3, 0.),
            ] {
                let logits = random(&[rows, classes], kind) * 2.;
                let leaf = f64s(&logits).set_requires_grad(true);
                let mut x = bias.map_or(leaf.shallow_clone(), |bias| &leaf + f64s(bias)) * scale;
                if let Some(cap) = cap {
                    x = (x / cap).tanh() * cap;
                }
                let denominator = x.logsumexp(-1, true);
                let picked = x.gather(1, &targets, false) * (1. - smoothing)
                    + x.mean_dim(-1, true, Kind::Double) * smoothing;
                let losses = &denominator - &picked + denominator.square() * z_loss;
                let gradient =
                    Tensor::run_backward(&[losses.sum(Kind::Double)], &[&leaf], false, false)
                        .remove(0)
                        / scale;
                let columns =
                    [(); 3].map(|()| Tensor::zeros([rows, 1], (Kind::Float, Device::Cpu)));
                let how = CrossEntropy { bias, scale, cap, smoothing, z_loss, gradient: true };
                let untouched = logits.copy();
                let only = CrossEntropy { gradient: false, ..how };
                assert!(cross_entropy(&logits, &targets, &columns, only).unwrap());
                assert_eq!(logits, untouched);
                assert!(cross_entropy(&logits, &targets, &columns, how).unwrap());
                let [largest, peak, target] = &columns;
                let epsilon = if kind == Kind::Float { 1e-6 } else { 4e-3 };
                assert!(off(&(largest - peak.log()), &denominator) <= 4e-6 * 20.);
                assert!(off(target, &picked) <= 4e-6);
                let off = off(&logits, &gradient);
                assert!(off <= epsilon, "{kind:?}, {how:?}: {off}");
            }
        }
    }
    let columns = [(); 3].map(|()| Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)));
    let how = CrossEntropy {
        bias: None,
        scale: 1.,
        cap: None,
        smoothing: 0.,
        z_loss: 0.,
        gradient: true,
    };
    let outside = Tensor::from_slice2(&[[4_i64]]);
    let error = cross_entropy(&random(&[1, 4], Kind::Float), &outside, &columns, how).unwrap_err();
    assert!(error.to_string().contains("the target 4 is not one of 4 classes"), "{error}");
}

/// Sums over rows do not depend on the number of threads: each thread has a number of its own.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    tch::manual_seed(6);
    let kind = Kind::BFloat16;
    let [x, up, gate] = [(); 3].map(|()| random(&[997, 129], kind));
    let weight = random(&[129], kind);
    let all = |threads: i32| {
        tch::set_num_threads(threads);
        let inputs = [&x, &weight, &up].map(|x| x.detach().set_requires_grad(true));
        let y = norm(&inputs[0], Some(&inputs[1]), None, NormForm::Rms, 1e-6).unwrap().unwrap();
        let z = gated(&y, &inputs[2], Gate::Silu).unwrap().unwrap();
        let mut all = Tensor::run_backward(&[(&z * &gate).sum(Kind::Float)], &inputs, false, false);
        all.push(z.detach());
        all
    };
    let one = all(1);
    for threads in [2, 3] {
        assert_eq!(all(threads), one);
    }
    tch::set_num_threads(1);
}

#[test]
fn not_a_number_and_infinity_come_through() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for kind in KINDS {
        let x = Tensor::from_slice2(&[[1., nan, 2.], [1., inf, 2.], [1., 3., 2.]]).to_kind(kind);
        let weight = Tensor::ones([3], (kind, Device::Cpu));
        let y = norm(&x, Some(&weight), None, NormForm::Rms, 1e-6).unwrap().unwrap();
        assert!(bool::try_from(y.i(0).isnan().all()).unwrap(), "{y}");
        assert!(
            bool::try_from(y.i((1, 1)).isnan()).unwrap()
                && bool::try_from(y.i(2).isfinite().all()).unwrap()
        );
        let ones = x.ones_like();
        let y = gated(&x, &ones, Gate::Silu).unwrap().unwrap();
        assert_eq!(y.isnan(), x.isnan());
        assert_eq!(y.isinf(), x.isinf());
        let heads = |x: &Tensor| x.view([1, 1, 3, 3]);
        let how = Attended { mask: None, causal: true, scale: 1., cap: None };
        let last = Tensor::from_slice2(&[[1., 2., 3.], [1., 3., 2.], [1., nan, 2.]]).to_kind(kind);
        let y =
            attend(&heads(&last), &heads(&last), &heads(&ones), how).unwrap().unwrap().view([3, 3]);
        assert!(bool::try_from(y.narrow(0, 0, 2).isfinite().all()).unwrap(), "{y}");
        assert!(bool::try_from(y.i(2).isnan().all()).unwrap(), "{y}");
    }
}

/// Second derivatives are those of libtorch's operators.
#[test]
fn gradients_have_gradients() {
    tch::manual_seed(7);
    let kind = Kind::Float;
    let [a, b] = [(); 2].map(|()| random(&[2, 3, 2, 4], kind).set_requires_grad(true));
    let weight = random(&[4], kind).set_requires_grad(true);
    let angles = (random(&[3, 1, 4], kind), random(&[3, 1, 4], kind));
    let inputs = [&a, &b, &weight];
    let how = Attended { mask: None, causal: true, scale: 0.5, cap: Some(2.) };
    let plain = |y: &Tensor, up: &Tensor| y.silu() * up;
    let penalty = |fused: bool| {
        let y = if fused {
            let (sum, y) =
                added_norm(&a, &b, Some(&weight), None, NormForm::Layer, 1e-2).unwrap().unwrap();
            let [q, k] = turned([&y, &sum], &angles, true).unwrap().unwrap();
            let [q, k, v] = [&q, &k, &y].map(|x| x.transpose(1, 2));
            let y = attend(&q, &k, &v, how).unwrap().unwrap().transpose(1, 2);
            gated(&y, &sum, Gate::Silu).unwrap().unwrap()
        } else {
            let sum = &a + &b;
            let y = sum.layer_norm([4], Some(&weight), None::<&Tensor>, 1e-2, true);
            let [q, k] = [&y, &sum].map(|x| rotated(x, &angles.0, &angles.1, true).transpose(1, 2));
            let y = attended(&[q, k, y.transpose(1, 2)].map(|x| x.to_kind(Kind::Double)), how);
            plain(&y.transpose(1, 2).to_kind(kind), &sum)
        };
        let first = Tensor::run_backward(&[y.square().sum(kind)], &inputs, true, true);
        let sum = first.iter().map(|x| x.square().sum(kind)).reduce(|a, b| a + b).unwrap();
        Tensor::run_backward(&[sum], &inputs, false, false)
    };
    for (found, expected) in penalty(true).iter().zip(&penalty(false)) {
        assert!(found.allclose(expected, 1e-3, 1e-3, false), "{found} and {expected}");
    }
}

#[test]
fn only_what_is_wanted_is_computed_and_the_rest_is_declined() {
    let kind = Kind::Float;
    let x = random(&[5, 8], kind).set_requires_grad(true);
    let frozen = random(&[8], kind);
    let y = norm(&x, Some(&frozen), None, NormForm::Rms, 1e-6).unwrap().unwrap();
    let _ = Tensor::run_backward(&[y.sum(kind)], &[&x], false, false);
    let tuned = frozen.detach().set_requires_grad(true);
    let y = norm(&x.detach(), Some(&tuned), None, NormForm::Rms, 1e-6).unwrap().unwrap();
    assert!(y.requires_grad());
    let wide = random(&[5, 8], Kind::Double);
    assert!(gated(&wide, &wide, Gate::Silu).unwrap().is_none());
    assert!(norm(&x, Some(&random(&[8], Kind::BFloat16)), None, NormForm::Rms, 1e-6)
        .unwrap()
        .is_none());
    assert!(norm(&x, Some(&random(&[7], kind)), None, NormForm::Rms, 1e-6).unwrap().is_none());
    assert!(added_norm(&x, &random(&[1, 8], kind), None, None, NormForm::Rms, 1e-6)
        .unwrap()
        .is_none());
    assert!(gated(&x, &random(&[1, 8], kind), Gate::Silu).unwrap().is_none());
    assert!(gated_in_one(&random(&[2, 3], kind), Gate::Silu).unwrap().is_none());
    assert!(without_fused_functions(|| gated(&x, &x, Gate::Silu)).unwrap().is_none());
    assert!(gated(&x, &x, Gate::Silu).unwrap().is_some());
    // A kept tensor that was changed in place is an error, and no exception that ends the process.
    let changed = random(&[5, 8], kind);
    let mut base = changed.shallow_clone();
    let y = gated(&x, &changed, Gate::Silu).unwrap().unwrap();
    let _ = base.fill_(1.);
    let error = Tensor::f_run_backward(&[y.sum(kind)], &[&x], false, false).unwrap_err();
    assert!(error.to_string().contains("modified by an inplace operation"), "{error}");
}

/// The loops are compiled for several kinds of processor; each is run where libtorch can be told to use it.
#[test]
fn loops_for_other_processors_agree_too() {
    if std::env::var_os("ATEN_CPU_CAPABILITY").is_some() {
        return;
    }
    let run = |capability: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["kernels::fused::tests", "--test-threads=1"]);
        command.env("ATEN_CPU_CAPABILITY", capability).spawn().unwrap()
    };
    for mut child in ["default", "avx2"].map(run) {
        assert!(child.wait().unwrap().success());
    }
}
