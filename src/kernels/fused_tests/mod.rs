mod attention;
mod cross_entropy;
mod gated;
mod norm;
mod plain;
mod products;
mod rope;

use std::f64::consts::SQRT_2;
use std::process::Command;

use tch::{no_grad, Device, IndexOp, Kind, Tensor};

use plain::{attended, rotated};

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

/// The nearest numbers of this kind, with the gradient of `x`.
fn rounded(x: &Tensor, kind: Kind) -> Tensor {
    (x.to_kind(kind).to_kind(x.kind()) - x).detach() + x
}

/// Values and gradients are those of `operators` in f64, rounded once to the inputs' kind, but for what sums in f32
/// lose. Undefined inputs are left out.
fn agree(
    what: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Vec<Tensor>,
    operators: impl Fn(&[Tensor]) -> Vec<Tensor>,
) {
    agree_within(what, inputs, fused, operators, 0.);
}

/// [`agree`] where values between are rounded to the kind too: off by so many halves of the largest value's last bit.
fn agree_within(
    what: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Vec<Tensor>,
    operators: impl Fn(&[Tensor]) -> Vec<Tensor>,
    roundings: f64,
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
    // The same in each run.
    let upstream = shapes.iter().map(|shape| {
        let places = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
        (((places + 1.) * 78.233).sin() * SQRT_2).to_kind(kind).view(&shape[..])
    });
    let upstream: Vec<Tensor> = upstream.collect();
    let (found, found_gradients) = all(leaves(None), &fused, &upstream);
    let (expected, expected_gradients) = all(leaves(Some(Kind::Double)), &operators, &upstream);
    // Half of the last bit, of 1 and of the smallest number.
    let (half_bit, least) = match kind {
        Kind::Float => (2f64.powi(-24), 0.),
        Kind::BFloat16 => (2f64.powi(-8), 0.),
        _ => (2f64.powi(-11), 2f64.powi(-25)),
    };
    assert_eq!(found.len(), expected.len());
    for (found, expected) in
        found.iter().zip(&expected).chain(found_gradients.iter().zip(&expected_gradients))
    {
        assert_eq!(found.size(), expected.size(), "{what}");
        assert_eq!(found.kind(), kind, "{what}");
        if found.numel() == 0 {
            continue;
        }
        let scale = expected.abs().max().double_value(&[]).max(1.);
        let of_all = least + 3e-6 * scale + roundings * half_bit * scale;
        let over = (found.to_kind(Kind::Double) - expected).abs() - expected.abs() * half_bit;
        let over = over.max().double_value(&[]);
        assert!(
            over <= of_all,
            "{what} in {kind:?}, {:?}: {over} more than half of the last bit off, {of_all} is allowed",
            found.size()
        );
    }
    // Without a graph, the same bits.
    let bare = no_grad(|| fused(inputs));
    bare.iter().zip(&found).for_each(|(bare, found)| assert_eq!(*bare, found.detach(), "{what}"));
}

/// Inputs of this shape: dense, in columns, a part of wider rows, one row for all, and one for each of the first rows of
/// rows.
fn layouts(shape: &[i64], kind: Kind) -> Vec<Tensor> {
    let size = *shape.last().unwrap();
    let mut wider = shape.to_vec();
    *wider.last_mut().unwrap() = size + 3;
    let columns: Vec<i64> = shape.iter().rev().copied().collect();
    let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
    let one: Vec<i64> = vec![1; shape.len() - 1].into_iter().chain([size]).collect();
    let mut each = shape.to_vec();
    each[shape.len().saturating_sub(2)] = if shape.len() > 1 { 1 } else { size };
    vec![
        random(shape, kind),
        random(&columns, kind).permute(reversed),
        random(&wider, kind).narrow(-1, 2, size),
        random(&one, kind).expand(shape, false),
        random(&each, kind).expand(shape, false),
    ]
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
