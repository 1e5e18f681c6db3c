//! Any order of going backward, clipping, zeroing and stepping gives what PyTorch gives.

use std::collections::HashMap;

use crate::nets::only;
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::{ErrorKind, LnTuningConfig, LnTuningModel, Optimizer, Sgd};
use proptest::prelude::*;
use tch::nn::{self, OptimizerConfig};
use tch::{no_grad, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const NAMES: [&str; 3] = ["norm1.weight", "norm1.bias", "norm2.weight"];

/// The actions that user code may take, in any order.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// `loss.backward()`.
    Backward(usize),
    OptimizerBackward(usize),
    OptimizerBackwardRecompute(usize),
    OptimizerBackwardWith(usize),
    /// `variable.zero_grad()` for each.
    ZeroInPlace,
    /// Another tensor behind each `.grad()`.
    ZeroByData,
    /// `zero_grad` of tch's optimiser, which makes gradients undefined.
    ZeroOfTch,
    ZeroOfOptimizer,
    ClipOfTch,
    ClipOfOptimizer,
    ClampOfOptimizer,
    /// `variable.grad() *= 0.5`.
    Halve,
    /// `variable.grad().data() *= 0.5`, which raises no version.
    HalveByData,
    /// The base is used meanwhile.
    Disable,
    /// Another adapter is used, and trained, meanwhile.
    Switch,
    Step,
    BackwardStep(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    use Action::*;
    let one = (0usize..17, 0usize..4).prop_map(|(action, loss)| match action {
        0 => Backward(loss),
        1 => OptimizerBackward(loss),
        2 => OptimizerBackwardRecompute(loss),
        3 => OptimizerBackwardWith(loss),
        4 => ZeroInPlace,
        5 => ZeroByData,
        6 => ZeroOfTch,
        7 => ZeroOfOptimizer,
        8 => ClipOfTch,
        9 => ClipOfOptimizer,
        10 => ClampOfOptimizer,
        11 => Halve,
        12 => Disable,
        13 => Switch,
        14 => Step,
        15 => HalveByData,
        _ => BackwardStep(loss),
    });
    prop::collection::vec(one, 1..14)
}

/// The same variables twice: one set under an adapter, the other with tch alone.
struct Pair {
    ours: nn::VarStore,
    tuned: LnTuningModel,
    opt: Optimizer,
    other: Optimizer,
    tch_opt: nn::Optimizer,
    plain: nn::VarStore,
    plain_opt: nn::Optimizer,
}

fn variables(kind: Kind) -> nn::VarStore {
    let mut vs = nn::VarStore::new(Device::Cpu);
    for (index, name) in NAMES.iter().enumerate() {
        let (module, name) = name.split_once('.').unwrap();
        let value = Tensor::ones([4 + index as i64 / 2 * 3], CPU);
        let _ = (vs.root() / module).var_copy(name, &value);
    }
    if kind == Kind::BFloat16 {
        vs.bfloat16();
    }
    vs
}

/// True for PEFT's key of this variable.
fn is_of(key: &str, name: &str) -> bool {
    let (module, parameter) = name.split_once('.').unwrap();
    key.contains(module) && key.ends_with(parameter)
}

/// A loss whose gradients are small whole numbers, which every kind holds. The last has none for `norm2.weight`.
fn loss(vs: &nn::VarStore, index: usize) -> Tensor {
    let all = vs.variables();
    let term = |(place, name): (usize, &&str)| {
        let weight = &all[*name];
        let factors = Tensor::arange(weight.numel() as i64, CPU) + (place + index * 3) as f64 - 4.;
        (weight * factors.to_kind(weight.kind())).sum(Kind::Float)
    };
    NAMES.iter().enumerate().take(if index == 3 { 2 } else { 3 }).map(term).sum()
}

/// `clip_grad_norm` of tch's optimiser.
fn clip_norm_as_tch(vs: &nn::VarStore) {
    let gradients = vs.variables().into_values().map(|variable| variable.grad());
    let gradients: Vec<Tensor> = gradients.filter(Tensor::defined).collect();
    let norms: Vec<Tensor> =
        gradients.iter().map(|gradient| gradient.to_kind(Kind::Float).norm()).collect();
    let coefficient = 2. / (Tensor::stack(&norms, 0).norm().double_value(&[]) + 1e-6);
    if coefficient < 1. {
        for mut gradient in gradients {
            let _ = gradient.g_mul_scalar_(coefficient);
        }
    }
}

impl Pair {
    fn new(kind: Kind) -> Pair {
        tch::set_num_threads(1);
        let ours = variables(kind);
        let mut tuned =
            LnTuningModel::with_adapter_name(&ours, LnTuningConfig::default(), "a").unwrap();
        let opt = tuned.optimizer(Sgd::default(), 0.125).unwrap();
        tuned.add_adapter("b", only("norm1")).unwrap();
        tuned.set_adapter("b").unwrap();
        let other = tuned.optimizer(Sgd::default(), 0.5).unwrap();
        tuned.set_adapter("a").unwrap();
        let tch_opt = Sgd::default().build(&ours, 1.).unwrap();
        let plain = variables(Kind::Float);
        let plain_opt = Sgd::default().build(&plain, 0.125).unwrap();
        Pair { ours, tuned, opt, other, tch_opt, plain, plain_opt }
    }

    fn act(&mut self, action: Action) {
        use Action::*;
        let both =
            || [&self.ours, &self.plain].into_iter().flat_map(|vs| vs.variables().into_values());
        match action {
            Backward(index) => loss(&self.ours, index).backward(),
            OptimizerBackward(index) => self.opt.backward(&loss(&self.ours, index)).unwrap(),
            OptimizerBackwardRecompute(index) => {
                let ours = &self.ours;
                let forward = |_: &mut Tape<'_>| Ok(loss(ours, index));
                let _loss = self.opt.backward_recompute(&Recompute::default(), forward).unwrap();
            }
            OptimizerBackwardWith(index) => {
                let loss = loss(&self.ours, index);
                let gradients = |inputs: &[Tensor]| {
                    Ok(((), Tensor::f_run_backward(&[&loss], inputs, false, false)?))
                };
                self.opt.backward_with(gradients).unwrap();
            }
            ZeroInPlace => both().for_each(|mut variable| variable.zero_grad()),
            ZeroByData => both().map(|v| v.grad()).filter(Tensor::defined).for_each(|mut grad| {
                let zeros = grad.zeros_like();
                grad.set_data(&zeros);
            }),
            ZeroOfTch => {
                self.tch_opt.zero_grad();
                self.plain_opt.zero_grad();
            }
            ZeroOfOptimizer => {
                self.opt.zero_grad().unwrap();
                self.plain_opt.zero_grad();
            }
            ClipOfTch | ClipOfOptimizer if !self.has_gradients() => (),
            ClipOfTch => {
                clip_norm_as_tch(&self.ours);
                clip_norm_as_tch(&self.plain);
            }
            ClipOfOptimizer => {
                let _norm = self.opt.clip_grad_norm(2.).unwrap();
                clip_norm_as_tch(&self.plain);
            }
            ClampOfOptimizer => {
                if self.has_gradients() {
                    self.opt.clip_grad_value(1.5).unwrap();
                }
                self.plain_opt.clip_grad_value(1.5);
            }
            Halve => both().map(|v| v.grad()).filter(Tensor::defined).for_each(|mut grad| {
                let _ = grad.g_mul_scalar_(0.5);
            }),
            HalveByData => both().map(|v| v.grad()).filter(Tensor::defined).for_each(|grad| {
                let _ = grad.data().g_mul_scalar_(0.5);
            }),
            Disable => self
                .tuned
                .with_disabled(|| {
                    self.ours.variables().values().for_each(|v| assert!(!v.requires_grad()))
                })
                .unwrap(),
            Switch => {
                self.tuned.set_adapter("b").unwrap();
                self.other.backward_step(&loss(&self.ours, 1)).unwrap();
                loss(&self.ours, 2).backward();
                self.tuned.set_adapter("a").unwrap();
            }
            Step => {
                match self.opt.step() {
                    Ok(()) => (),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoGradient);
                        assert!(!self.has_gradients());
                    }
                }
                self.plain_opt.step();
            }
            BackwardStep(index) => {
                self.opt.backward_step(&loss(&self.ours, index)).unwrap();
                self.plain_opt.backward_step(&loss(&self.plain, index));
            }
        }
        if let Backward(index)
        | OptimizerBackward(index)
        | OptimizerBackwardRecompute(index)
        | OptimizerBackwardWith(index) = action
        {
            loss(&self.plain, index).backward();
        }
    }

    /// True if torch has a gradient, be it 0.
    fn has_gradients(&self) -> bool {
        self.plain.variables().values().any(|variable| variable.grad().defined())
    }

    /// The largest difference of weights and gradients, the variables' and those that the optimiser tells.
    fn difference(&mut self) -> f64 {
        let weights = self.tuned.state_dict("a").unwrap();
        let told: HashMap<String, Option<Tensor>> =
            self.opt.gradients().unwrap().into_iter().collect();
        let (ours, plain) = (self.ours.variables(), self.plain.variables());
        let mut largest = 0f64;
        for name in NAMES {
            let value = |grad: Tensor| match grad.defined() {
                true => grad.to_kind(Kind::Double),
                false => Tensor::zeros(plain[name].size(), (Kind::Double, Device::Cpu)),
            };
            let expected = value(plain[name].grad());
            let (_, weight) = weights.iter().find(|(key, _)| is_of(key, name)).unwrap();
            for off in [
                value(ours[name].grad()) - &expected,
                value(told[name].as_ref().map_or(Tensor::new(), Tensor::shallow_clone)) - &expected,
                weight.to_kind(Kind::Double) - plain[name].to_kind(Kind::Double),
            ] {
                largest = largest.max(no_grad(|| off.abs().max().double_value(&[])));
            }
        }
        largest
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_order_of_backward_clip_zero_and_step_gives_what_torch_gives(
        actions in actions(),
        low in any::<bool>(),
    ) {
        let kind = if low { Kind::BFloat16 } else { Kind::Float };
        let mut pair = Pair::new(kind);
        for (done, action) in actions.iter().enumerate() {
            pair.act(*action);
            let off = pair.difference();
            prop_assert!(off <= if low { 0.3 } else { 1e-4 }, "{off} after {:?}", &actions[..=done]);
        }
    }
}
