//! Blocks that are run again give the gradients of blocks that keep their activations.

use std::cell::Cell;

use super::random::alone;
use ln_tuning::recompute::{Blocks, Recompute, Tape};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Result};
use tch::{nn, nn::Module, nn::OptimizerConfig, no_grad, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const SIZE: i64 = 6;

struct Net {
    vs: nn::VarStore,
    blocks: Vec<nn::Sequential>,
    head: nn::Linear,
    x: Tensor,
}

impl Net {
    fn new() -> Net {
        tch::manual_seed(3);
        let vs = nn::VarStore::new(Device::Cpu);
        let block = |index: i64| {
            let path = vs.root() / "layers" / index;
            nn::seq()
                .add(nn::layer_norm(&path / "norm", vec![SIZE], Default::default()))
                .add(nn::linear(&path / "linear", SIZE, SIZE, Default::default()))
                .add_fn(Tensor::tanh)
        };
        let blocks = (0..5).map(block).collect();
        let head = nn::linear(vs.root() / "head", SIZE, 2, Default::default());
        Net { blocks, head, x: Tensor::randn([4, SIZE], CPU), vs }
    }

    fn loss<'a>(&'a self, tape: &mut Tape<'a>) -> Result<Tensor> {
        let mut h = self.x.shallow_clone();
        for block in &self.blocks {
            h = &h + tape.run(&h, |h| Ok(block.forward(h)))?;
        }
        Ok(self.head.forward(&h).square().mean(Kind::Float))
    }

    fn plain(&self) -> Tensor {
        let h = self.blocks.iter().fold(self.x.shallow_clone(), |h, b| &h + b.forward(&h));
        self.head.forward(&h).square().mean(Kind::Float)
    }

    /// All variables, by name.
    fn variables(&self) -> Vec<Tensor> {
        let mut named: Vec<_> = self.vs.variables().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        named.into_iter().map(|(_, tensor)| tensor).collect()
    }
}

fn ways() -> [Blocks; 6] {
    let first = Blocks::First;
    [Blocks::All, Blocks::EveryNth(1), Blocks::EveryNth(2), Blocks::EveryNth(9), first(0), first(3)]
}

fn assert_close(a: &Tensor, b: &Tensor) {
    assert_eq!((a.size(), a.kind()), (b.size(), b.kind()));
    let off = (a - b).abs().max().double_value(&[]);
    assert!(off <= 1e-6, "{off} off");
}

#[test]
fn gradients_are_those_of_a_plain_backward_pass() {
    let _alone = alone();
    let net = Net::new();
    let variables = net.variables();
    let plain = net.plain();
    let expected = Tensor::run_backward(&[&plain], &variables, false, false);
    for blocks in ways() {
        let recompute = Recompute::new(blocks);
        let (loss, found) = recompute.gradients(&variables, |tape| net.loss(tape)).unwrap();
        assert_close(&loss, &plain);
        assert!(!loss.requires_grad());
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected);
        }
    }
}

#[test]
fn an_adapter_trains_as_without() {
    let _alone = alone();
    let mut ends: Vec<Vec<Tensor>> = Vec::new();
    for blocks in [None, Some(Blocks::All), Some(Blocks::EveryNth(2))] {
        let net = Net::new();
        let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        for _ in 0..5 {
            match blocks {
                None => opt.backward_step_clip_norm(&net.plain(), 0.1).unwrap(),
                Some(blocks) => {
                    opt.zero_grad().unwrap();
                    let recompute = Recompute::new(blocks);
                    let _ = opt
                        .backward_with(|inputs| recompute.gradients(inputs, |tape| net.loss(tape)))
                        .unwrap();
                    let _ = opt.clip_grad_norm(0.1).unwrap();
                    opt.step().unwrap();
                }
            }
        }
        ends.push(net.variables());
    }
    for end in &ends[1..] {
        for (found, expected) in end.iter().zip(&ends[0]) {
            assert_close(found, expected);
        }
    }
}

#[test]
fn optimisers_of_tch_find_the_gradients_in_the_variables() {
    let _alone = alone();
    let net = Net::new();
    let inputs = net.vs.trainable_variables();
    let stray = Tensor::zeros([2], CPU).set_requires_grad(true);
    net.plain().backward();
    let expected: Vec<Tensor> = inputs.iter().map(|v| v.grad().copy()).collect();
    let mut opt = nn::AdamW::default().build(&net.vs, 1e-3).unwrap();
    opt.zero_grad();
    let all: Vec<Tensor> = inputs.iter().chain([&stray]).map(Tensor::shallow_clone).collect();
    // Twice, since gradients add up.
    for _ in 0..2 {
        let _ = Recompute::default().backward(&all, |tape| net.loss(tape)).unwrap();
    }
    for (variable, expected) in inputs.iter().zip(&expected) {
        assert_close(&variable.grad(), &(expected * 2.));
    }
    assert!(!stray.grad().defined());
    opt.step();
}

/// Products of weights and dropout: the loss is linear in each weight, so that `w · gradient` is the loss, if and only
/// if the second run drops the same elements.
#[test]
fn dropout_drops_the_same_elements_in_both_runs() {
    let _alone = alone();
    let weights: Vec<Tensor> = (0..4)
        .map(|i| (Tensor::ones([50], CPU) * (1. + 0.1 * i as f64)).set_requires_grad(true))
        .collect();
    let run = |recompute: Recompute| {
        recompute
            .gradients(&weights, |tape| {
                let mut h = Tensor::ones([50], CPU);
                for weight in &weights {
                    h = tape.run(&h, move |h| Ok((h * weight).dropout(0.3, true)))?;
                }
                Ok(h.sum(Kind::Float))
            })
            .unwrap()
    };
    let fits = |(loss, gradients): &(Tensor, Vec<Tensor>)| {
        weights.iter().zip(gradients).all(|(weight, gradient)| {
            let sum = (weight * gradient).sum(Kind::Float);
            (sum - loss).abs().double_value(&[]) < 1e-3
        })
    };
    for blocks in ways() {
        let recompute = Recompute::new(blocks);
        tch::manual_seed(11);
        let first = run(recompute);
        assert!(fits(&first), "{blocks:?}");
        // Randomness goes on after a pass, and is that of the seed.
        let second = run(recompute);
        assert!(fits(&second));
        assert_ne!(first.0.double_value(&[]), second.0.double_value(&[]));
        assert_ne!(first.1[0], second.1[0]);
        tch::manual_seed(11);
        assert_eq!(run(recompute).0.double_value(&[]), first.0.double_value(&[]));
    }
    let careless = run(Recompute::default().preserve_rng_state(false));
    assert!(!fits(&careless));
}

#[test]
fn without_it_the_random_numbers_of_the_program_stay() {
    let _alone = alone();
    let net = Net::new();
    let variables = net.variables();
    let draw = || Tensor::rand([1], CPU).double_value(&[]);
    tch::manual_seed(5);
    let undisturbed = draw();
    tch::manual_seed(5);
    let recompute = Recompute::default().preserve_rng_state(false);
    let _ = recompute.gradients(&variables, |tape| net.loss(tape)).unwrap();
    assert_eq!(draw(), undisturbed);
}

/// Several inputs and outputs, tensors with a graph that a block captures, a graph that is shared between blocks and
/// the loss, an output that is an input, outputs without a gradient and one that nothing uses.
#[test]
fn any_closure_over_tensors_will_do() {
    let _alone = alone();
    let leaf = |seed: i64| {
        let wave = (Tensor::arange(SIZE, CPU) + seed).sin();
        wave.set_requires_grad(true)
    };
    let inputs = [leaf(1), leaf(2), leaf(3)];
    let [a, b, c] = &inputs;
    type Out = Vec<Tensor>;
    let forward = |run: &mut dyn FnMut(&[&Tensor], usize) -> Out| {
        let shared = a.sin();
        let first = run(&[&shared, b], 0);
        let between = (&first[0] * &shared).exp();
        let second = run(&[&between, &first[1], &first[0]], 1);
        let third = run(&[&second[0]], 2);
        assert_eq!(second[1].kind(), Kind::Int64);
        let picked = third[0].index_select(0, &second[1]);
        (picked + &shared * &first[1] + second[2].sigmoid()).sum(Kind::Float)
    };
    let block = |captured: &Tensor, index: usize, x: &[Tensor]| -> Out {
        match index {
            0 => vec![(&x[0] * captured).tanh(), x[1].shallow_clone(), c * 2.],
            1 => vec![&x[0] * &x[1], x[0].argsort(0, false), x[2].square()],
            _ => vec![x[0].tanh() * captured],
        }
    };
    let plain = forward(&mut |x, index| {
        let x: Vec<Tensor> = x.iter().map(|x| x.shallow_clone()).collect();
        block(&c.cos(), index, &x)
    });
    let expected = Tensor::run_backward(&[&plain], &inputs, true, false);
    for blocks in ways() {
        let recompute = Recompute::new(blocks);
        let captured = c.cos();
        let (loss, found) = recompute
            .gradients(&inputs, |tape| {
                let (block, captured) = (&block, &captured);
                Ok(forward(&mut |x, index| {
                    tape.run_many(x, move |x| Ok(block(captured, index, x))).unwrap()
                }))
            })
            .unwrap();
        assert_close(&loss, &plain);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected);
        }
    }
}

#[test]
fn only_what_has_a_gradient_is_run_again() {
    let _alone = alone();
    let runs: [Cell<usize>; 4] = Default::default();
    let weight = Tensor::ones([3], CPU).set_requires_grad(true);
    let inputs = [weight.shallow_clone()];
    let recompute = Recompute::default();
    let (_, found) = recompute
        .gradients(&inputs, |tape| {
            let mut h = Tensor::ones([3], CPU);
            for (index, count) in runs.iter().enumerate() {
                let weight = &weight;
                h = tape.run(&h, move |h| {
                    count.set(count.get() + 1);
                    // Only the second block has something that trains.
                    Ok(if index == 1 { h * weight } else { h * 2. })
                })?;
            }
            Ok(h.sum(Kind::Float))
        })
        .unwrap();
    assert_close(&found[0], &Tensor::from_slice(&[8f32; 3]));
    assert_eq!(runs.map(|count| count.get()), [1, 2, 2, 2]);
}

#[test]
fn a_memory_budget_says_which_blocks() {
    let _alone = alone();
    let within = |budget| Blocks::within(budget, 100, 8);
    assert_eq!(within(0), Blocks::First(8));
    assert_eq!(within(350), Blocks::First(5));
    assert_eq!(within(10_000), Blocks::First(0));
    assert_eq!(Blocks::within(10, 0, 8), Blocks::First(0));
}

#[test]
fn what_has_no_gradient_is_refused() {
    let _alone = alone();
    let net = Net::new();
    let variables = net.variables();
    let recompute = Recompute::default();
    let kind = |result: Result<(Tensor, Vec<Tensor>)>| result.unwrap_err().kind();
    let frozen = no_grad(|| recompute.gradients(&variables, |tape| net.loss(tape)));
    assert_eq!(kind(frozen), ErrorKind::NoGradient);
    let vector = recompute.gradients(&variables, |tape| Ok(net.loss(tape)? * &net.x));
    assert_eq!(kind(vector), ErrorKind::NoGradient);
    // An error of a block comes out as it is.
    let failed = recompute.gradients(&variables, |tape| tape.run(&net.x, |x| Ok(x.f_matmul(x)?)));
    assert_eq!(kind(failed), ErrorKind::Torch);
}
