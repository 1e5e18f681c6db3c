use std::cell::Cell;
use std::f64::consts::PI;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::plain::attended;
use super::*;

/// Scores and weights are rounded to the kind, and so are their gradients.
const ROUNDINGS: f64 = 3.;

fn check(inputs: &[Tensor; 3], how: Attended) {
    agree_within(
        &format!("{how:?}"),
        inputs,
        |of| vec![attend(&of[0], &of[1], &of[2], how).unwrap().unwrap()],
        |of| vec![attended(of, how)],
        ROUNDINGS,
    );
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
                    check(&inputs, how);
                }
            }
        }
    }
}

/// Numbers that are the same in each run: libtorch's generator is one for all threads, and roundings that happen to add up
/// pass the limit once in many thousand draws.
#[derive(Default)]
struct Drawn(Cell<i64>);

impl Drawn {
    /// From 0 to below 1: digits of sines that are far behind the point.
    fn uniform(&self, shape: &[i64]) -> Tensor {
        let (count, start) = (shape.iter().product::<i64>(), self.0.get());
        self.0.set(start + count);
        let places = Tensor::arange_start(start, start + count, (Kind::Double, Device::Cpu));
        let digits = ((places + 1.) * 78.233).sin().abs() * 43_758.545_3;
        digits.frac().view(shape)
    }

    /// By Box and Muller.
    fn normal(&self, shape: &[i64]) -> Tensor {
        let radius = ((1_f64 - self.uniform(shape)).log() * -2.).sqrt();
        (radius * (self.uniform(shape) * (2. * PI)).cos()).to_kind(Kind::Float)
    }
}

fn cases() -> ProptestConfig {
    let (rng_seed, failure_persistence) = (RngSeed::Fixed(1), None);
    ProptestConfig { rng_seed, failure_persistence, ..ProptestConfig::with_cases(48) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_attention_is_that_of_operators(
        (batch, kv_heads, group) in (1..4_i64, 1..4_i64, 1..4_i64),
        (length, keys, dim, value_dim) in (1..30_i64, 1..70_i64, 1..20_i64, 1..20_i64),
        (kind, masked, cap, square) in (0..3_usize, 0..5_usize, any::<bool>(), any::<bool>()),
    ) {
        let (kind, heads) = (KINDS[kind], kv_heads * group);
        let length = if square { keys } else { length };
        let drawn = Drawn::default();
        let make = |heads: i64, length: i64, dim: i64| {
            drawn.normal(&[batch, length, heads, dim]).to_kind(kind).transpose(1, 2)
        };
        let inputs =
            [make(heads, length, dim), make(kv_heads, keys, dim), make(kv_heads, keys, value_dim)];
        let some = |shape: &[i64]| drawn.uniform(shape).gt(0.4);
        let shapes = [
            vec![length, keys],
            vec![batch, 1, length, keys],
            vec![batch, 1, 1, keys],
            vec![1, 1, length, keys],
        ];
        let mask = shapes.get(masked).map(|shape| some(shape));
        let causal = square && mask.is_none();
        let cap = cap.then_some(1.5);
        check(&inputs, Attended { mask: mask.as_ref(), causal, scale: 0.4, cap });
    }
}
