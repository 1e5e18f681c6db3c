//! Several adapters train at once, in batches whose rows name them, as each would alone.

use std::rc::Rc;

use ln_tuning::loss::{LinearCrossEntropy, Reduction, IGNORE_INDEX};
use ln_tuning::models::Inputs;
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, DynamicLossScale, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::nets::llama;
use crate::random;

const NAMES: [&str; 3] = ["slow", "fast", "wild"];
const RATES: [f64; 3] = [1e-3, 1e-2, 1e30];

/// Three adapters, of which the second is active; they have these modules of their own.
fn attached(vs: &VarStore, saved: &[&str]) -> LnTuningModel {
    let config = || LnTuningConfig::default().modules_to_save(saved.iter().copied());
    let mut tuned = LnTuningModel::with_adapter_name(vs, config(), NAMES[0]).unwrap();
    NAMES[1..].iter().for_each(|name| tuned.add_adapter(name, config()).unwrap());
    tuned.set_adapter(NAMES[1]).unwrap();
    tuned
}

/// Two rows for each adapter in each step: those of adapter `at` are `2 * at` and `2 * at + 1`.
fn batch(step: i64) -> (Tensor, Tensor) {
    tch::manual_seed(100 + step);
    let ids = Tensor::randint(50, [6, 9], (Kind::Int64, Device::Cpu));
    let labels = ids.copy();
    let _ = labels.narrow(1, 0, 3).fill_(IGNORE_INDEX);
    (ids, labels)
}

const STEPS: i64 = 5;

/// The weights of each adapter, and the losses, of training one after the other.
fn alone(saved: &[&str]) -> (Vec<Tensor>, Vec<Vec<f64>>) {
    let (vs, model) = llama(32, 3);
    let mut tuned = attached(&vs, saved);
    let loss = LinearCrossEntropy::default().reduction(Reduction::SumOver(10));
    let (mut weights, mut losses) = (Vec::new(), Vec::new());
    for (at, name) in (0..).zip(NAMES) {
        tuned.set_adapter(name).unwrap();
        let mut optimizer = tuned.optimizer(AdamW::default(), RATES[at as usize]).unwrap();
        let mut own = Vec::new();
        for step in 0..STEPS {
            let (ids, labels) = batch(step);
            let (ids, labels) = (ids.narrow(0, 2 * at, 2), labels.narrow(0, 2 * at, 2));
            optimizer.zero_grad().unwrap();
            let loss = model.loss(Inputs::new(&ids).train(true), &labels, &loss).unwrap();
            optimizer.backward(&loss).unwrap();
            let _ = optimizer.clip_grad_norm(0.1).unwrap();
            optimizer.step().unwrap();
            own.push(loss.double_value(&[]));
        }
        weights.push(flat(&tuned, name));
        losses.push(own);
    }
    (weights, losses)
}

fn flat(tuned: &LnTuningModel, name: &str) -> Tensor {
    let tensors: Vec<Tensor> =
        tuned.state_dict(name).unwrap().into_iter().map(|(_, t)| t.reshape([-1])).collect();
    Tensor::cat(&tensors, 0)
}

/// The same, of training at once.
fn together(saved: &[&str], recompute: Option<&Recompute>) -> (Vec<Tensor>, Vec<Vec<f64>>) {
    let (vs, model) = llama(32, 3);
    let model = Rc::new(model);
    let tuned = attached(&vs, saved);
    let rows = LinearCrossEntropy::default().reduction(Reduction::SumPerRow);
    let mut optimizers: Vec<Optimizer> = NAMES
        .iter()
        .zip(RATES)
        .map(|(name, lr)| tuned.optimizer_for(name, AdamW::default(), lr).unwrap())
        .collect();
    let names: Vec<&str> = NAMES.iter().flat_map(|name| [*name, *name]).collect();
    let mut losses = vec![Vec::new(); 3];
    for step in 0..STEPS {
        let (ids, labels) = batch(step);
        optimizers.iter_mut().for_each(|optimizer| optimizer.zero_grad().unwrap());
        let inputs = Inputs::new(&ids).adapter_names(&names).train(true);
        let of_adapters = |rows: &Tensor| {
            rows.view([3, 2]).sum_dim_intlist([1i64].as_slice(), false, Kind::Float) / 10.
        };
        let own = match recompute {
            None => {
                let own = of_adapters(&model.loss(inputs, &labels, &rows).unwrap());
                Optimizer::backward_mixed(&mut optimizers, &own.sum(Kind::Float)).unwrap();
                own
            }
            Some(recompute) => {
                let mut own = Tensor::new();
                Optimizer::backward_mixed_recompute(&mut optimizers, recompute, |tape| {
                    own = of_adapters(&model.loss_with(inputs, &labels, &rows, tape)?);
                    Ok(vec![own.sum(Kind::Float)])
                })
                .unwrap();
                own
            }
        };
        for (at, optimizer) in optimizers.iter_mut().enumerate() {
            let _ = optimizer.clip_grad_norm(0.1).unwrap();
            optimizer.step().unwrap();
            losses[at].push(own.double_value(&[at as i64]));
        }
    }
    (NAMES.iter().map(|name| flat(&tuned, name)).collect(), losses)
}

#[test]
fn adapters_train_in_one_pass_as_each_would_alone_and_one_that_diverges_harms_no_other() {
    let _alone = random::alone();
    // Embeddings and a layer of their own, beside their norms.
    for saved in [&[][..], &["embed_tokens", "q_proj"]] {
        adapters_train_as_alone(saved);
    }
}

fn adapters_train_as_alone(saved: &[&str]) {
    let (weights, losses) = alone(saved);
    for recompute in [None, Some(Recompute::default())] {
        let (ours, own) = together(saved, recompute.as_ref());
        for at in 0..2 {
            let apart = (&ours[at] - &weights[at]).abs().max().double_value(&[]);
            assert!(apart < 2e-5, "{}: the weights are {apart} apart", NAMES[at]);
            for (ours, alone) in own[at].iter().zip(&losses[at]) {
                assert!(
                    (ours - alone).abs() < 1e-5 * alone.abs(),
                    "{}: {ours}, {alone}",
                    NAMES[at]
                );
            }
            assert!(own[at][0] != own[at][4], "it learned nothing");
        }
        assert!(
            !own[2][4].is_finite() || own[2][4] > own[2][0],
            "the wild one did not diverge: {own:?}"
        );
    }
}

#[test]
fn what_cannot_train_at_once_is_refused_with_the_cure() {
    let _alone = random::alone();
    let (vs, model) = llama(32, 3);
    let mut tuned = attached(&vs, &[]);
    let rows = LinearCrossEntropy::default().reduction(Reduction::SumPerRow);
    let (ids, labels) = batch(0);
    let (ids, labels) = (ids.narrow(0, 0, 2), labels.narrow(0, 0, 2));
    let loss = |names: &[&str]| {
        let inputs = Inputs::new(&ids).adapter_names(names).train(true);
        model.loss(inputs, &labels, &rows).unwrap().sum(Kind::Float)
    };
    let made = |name: &str| tuned.optimizer_for(name, AdamW::default(), 1e-3);
    let (mut a, mut b) = (made("slow").unwrap(), made("fast").unwrap());
    let refused = |optimizers: &mut [Optimizer], loss: &Tensor, kind, words: &str| {
        let error = Optimizer::backward_mixed(optimizers, loss).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    assert_eq!(made("slowest").unwrap_err().kind(), ErrorKind::UnknownAdapter);
    let twice = made("slow").unwrap();
    let both = loss(&["slow", "fast"]);
    refused(&mut [], &both, ErrorKind::InvalidArgument, "there is no optimizer");
    let mut pair = [a, twice];
    refused(&mut pair, &both, ErrorKind::InvalidState, "two optimizers of adapter 'slow'");
    [a, _] = pair;
    b.set_loss_scale(8.).unwrap();
    let mut pair = [a, b];
    refused(&mut pair, &both, ErrorKind::InvalidArgument, "loss scales");
    pair[0].set_dynamic_loss_scale(DynamicLossScale::default()).unwrap();
    refused(&mut pair, &both, ErrorKind::InvalidArgument, "loss scales");
    pair[0].set_loss_scale(8.).unwrap();
    let scalar = model.loss(Inputs::new(&ids).adapter_names(&["slow", "fast"]), &labels, &rows);
    refused(&mut pair, &scalar.unwrap(), ErrorKind::NoGradient, "must be a scalar");
    Optimizer::backward_mixed(&mut pair, &both).unwrap();
    // The pass is over; a scale of 8 changes no gradient.
    refused(&mut pair, &both, ErrorKind::NoGradient, "no batch has named these adapters");
    let scaled: Vec<Tensor> = pair.iter_mut().map(|o| o.grad_norm().unwrap()).collect();
    for optimizer in &mut pair {
        optimizer.set_loss_scale(1.).unwrap();
        optimizer.zero_grad().unwrap();
    }
    Optimizer::backward_mixed(&mut pair, &loss(&["slow", "fast"])).unwrap();
    for (optimizer, scaled) in pair.iter_mut().zip(&scaled) {
        let (norm, scaled) =
            (optimizer.grad_norm().unwrap().double_value(&[]), scaled.double_value(&[]));
        assert!((norm - scaled).abs() < 1e-5 * norm && norm > 0., "{norm}, {scaled}");
        optimizer.step().unwrap();
    }
    // Two passes add up, each with its own rows.
    pair.iter_mut().for_each(|optimizer| optimizer.zero_grad().unwrap());
    let (first, second) = (loss(&["slow", "slow"]), loss(&["fast", "slow"]));
    Optimizer::backward_mixed(&mut pair, &(first + second)).unwrap();
    assert!(pair.iter_mut().all(|o| o.grad_norm().unwrap().double_value(&[]) > 0.));
    // One of the active adapter is another thing.
    let mut active = [tuned.optimizer(AdamW::default(), 1e-3).unwrap()];
    let both = loss(&["slow", "fast"]);
    refused(&mut active, &both, ErrorKind::InvalidState, "`optimizer_for`");
    // A head of their own gives no loss for each row.
    let config = LnTuningConfig::default().modules_to_save(["lm_head"]);
    tuned.add_adapter("headed", config).unwrap();
    let inputs = Inputs::new(&ids).adapter_names(&["headed", "slow"]).train(true);
    let error = model.loss(inputs, &labels, &rows).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("`Sum` gives each adapter the gradient"), "{error}");
    let [first, _] = pair;
    let headed = tuned.optimizer_for("headed", AdamW::default(), 1e-3).unwrap();
    let mut pair = [first, headed];
    pair.iter_mut().for_each(|optimizer| optimizer.zero_grad().unwrap());
    let sum = LinearCrossEntropy::default().reduction(Reduction::Sum);
    Optimizer::backward_mixed(&mut pair, &model.loss(inputs, &labels, &sum).unwrap()).unwrap();
    let gradients = pair[1].gradients().unwrap();
    assert!(gradients.iter().any(|(name, _)| name == "lm_head.weight"));
    for (name, gradient) in gradients {
        let norm = gradient.unwrap().norm().double_value(&[]);
        assert!(norm > 0. && norm.is_finite(), "{name}: {norm}");
    }
    tuned.merge_adapter("fast").unwrap();
    assert_eq!(pair[0].step().unwrap_err().kind(), ErrorKind::InvalidState);
}
