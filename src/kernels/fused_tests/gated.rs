use proptest::prelude::*;

use super::*;

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

/// The gate of `x` and `up`, and of halves of one tensor.
fn check(x: &Tensor, up: &Tensor, gate: Gate) {
    agree(
        &format!("{gate:?}"),
        &[x.shallow_clone(), up.shallow_clone()],
        |of| vec![gated(&of[0], &of[1], gate).unwrap().unwrap()],
        |of| vec![activated(&of[0], gate) * &of[1]],
    );
}

fn check_in_one(both: Tensor, gate: Gate) {
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
                    check(&(x * 3.), up, gate);
                }
                let mut double = shape.clone();
                *double.last_mut().unwrap() *= 2;
                for both in layouts(&double, kind) {
                    check_in_one(both, gate);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_gate_is_that_of_operators(
        (a, b, size, layouts_of) in (0..4_i64, 1..9_i64, 0..90_i64, (0..4_usize, 0..4_usize)),
        (kind, gate) in (0..3_usize, 0..5_usize),
    ) {
        let (kind, gate) = (KINDS[kind], GATES[gate]);
        let make = |size: i64, layout: usize| layouts(&[a, b, size], kind).swap_remove(layout);
        check(&make(size, layouts_of.0), &make(size, layouts_of.1), gate);
        check_in_one(make(2 * size, layouts_of.0), gate);
    }
}
