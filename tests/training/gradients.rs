//! There is one place for gradients: whoever goes backward, clips or zeroes, the update is that of PyTorch.

use crate::nets::{named_bits, two, Net};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer, Sgd};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{no_grad, Device, Kind, Tensor};

#[test]
fn a_loop_that_goes_backward_and_zeroes_itself_trains_as_our_own_does() {
    let zeroes: [fn(&Net, &mut nn::Optimizer); 4] = [
        |net, _| {
            for variable in net.vs.variables().into_values().filter(|v| v.grad().defined()) {
                let _ = variable.grad().data().zero_();
            }
        },
        |net, _| net.vs.variables().into_values().for_each(|mut v| v.zero_grad()),
        |_, opt| opt.zero_grad(),
        |net, _| {
            for variable in net.vs.variables().into_values().filter(|v| v.grad().defined()) {
                let zeros = variable.grad().zeros_like();
                variable.grad().set_data(&zeros);
            }
        },
    ];
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        for clip in [false, true] {
            let run = |zero: Option<fn(&Net, &mut nn::Optimizer)>| {
                let net = Net::new(kind);
                let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
                let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
                let mut tch_opt = Sgd::default().build(&net.vs, 1.).unwrap();
                for _ in 0..4 {
                    match zero {
                        None => opt.zero_grad().unwrap(),
                        Some(zero) => zero(&net, &mut tch_opt),
                    }
                    match zero {
                        None => opt.backward(&net.loss()).unwrap(),
                        Some(_) => net.loss().backward(),
                    }
                    if clip {
                        let _norm = opt.clip_grad_norm(0.1).unwrap();
                    }
                    opt.step().unwrap();
                }
                named_bits(&tuned.state_dict("default").unwrap())
            };
            let expected = run(None);
            for (index, zero) in zeroes.into_iter().enumerate() {
                assert!(
                    run(Some(zero)) == expected,
                    "{kind:?}, clipped: {clip}, zeroed by {index}"
                );
            }
        }
    }
}

#[test]
fn gradients_are_kept_while_another_adapter_is_in_use() {
    let train = |between: fn(&mut LnTuningModel, &Net)| {
        let net = Net::new(Kind::Float);
        let mut tuned = two(&net);
        let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
        net.loss().backward();
        opt.backward(&net.loss()).unwrap();
        between(&mut tuned, &net);
        net.loss().backward();
        opt.step().unwrap();
        named_bits(&tuned.state_dict("a").unwrap())
    };
    let expected = train(|_, _| ());
    let betweens: [fn(&mut LnTuningModel, &Net); 4] = [
        |tuned, net| tuned.with_disabled(|| drop(no_grad(|| net.loss()))).unwrap(),
        |tuned, net| {
            tuned.set_adapter("b").unwrap();
            net.train(tuned, 2);
            net.loss().backward();
            tuned.set_adapter("a").unwrap();
        },
        |tuned, _| {
            tuned.merge_adapter("a").unwrap();
            tuned.unmerge_adapter().unwrap();
        },
        |tuned, _| {
            tuned.set_requires_grad("a", false).unwrap();
            tuned.set_requires_grad("a", true).unwrap();
        },
    ];
    for (index, between) in betweens.into_iter().enumerate() {
        assert!(train(between) == expected, "{index}");
    }
}

#[test]
fn gradients_move_with_the_model() {
    let mut net = Net::new(Kind::Float);
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward(&net.loss()).unwrap();
    net.loss().backward();
    let before = named_gradients(&mut opt);
    net.set_kind(Kind::BFloat16);
    assert!(before.iter().zip(named_gradients(&mut opt)).all(|(a, b)| *a == b));
    let variables = net.vs.variables();
    assert_eq!(variables["norm1.weight"].grad().kind(), Kind::BFloat16);
    net.loss().backward();
    opt.step().unwrap();
}

fn named_gradients(opt: &mut Optimizer) -> Vec<(String, Vec<f64>)> {
    let value =
        |gradient: Option<Tensor>| Vec::try_from(gradient.unwrap().to_kind(Kind::Double)).unwrap();
    opt.gradients().unwrap().into_iter().map(|(name, g)| (name, value(g))).collect()
}

#[test]
fn gradients_that_the_base_had_before_are_not_the_adapters() {
    let net = Net::new(Kind::Float);
    net.loss().backward();
    let mut tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    assert_eq!(opt.step().unwrap_err().kind(), ErrorKind::NoGradient);
    // Nor are those of another adapter, which its optimiser touches only while it is in use.
    opt.backward(&net.loss()).unwrap();
    tuned.add_adapter("b", LnTuningConfig::default()).unwrap();
    tuned.set_adapter("b").unwrap();
    assert!(net.vs.variables().values().all(|v| !v.requires_grad() || !v.grad().defined()));
    let mut other = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    other.backward(&net.loss()).unwrap();
    let before = named_gradients(&mut other);
    opt.zero_grad().unwrap();
    assert!(opt.gradients().unwrap().iter().all(|(_, gradient)| gradient.is_none()));
    assert_eq!(named_gradients(&mut other), before);
}

#[test]
fn sparse_gradients_of_an_embedding_train_it_or_are_refused_by_name() {
    let vs = nn::VarStore::new(Device::Cpu);
    let _ = nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    let ws_init = nn::Init::Const(1.);
    let config = nn::EmbeddingConfig { sparse: true, ws_init, ..Default::default() };
    let embedding = nn::embedding(vs.root() / "embedding", 6, 4, config);
    let config = LnTuningConfig::default().modules_to_save(["embedding"]);
    let tuned = LnTuningModel::new(&vs, config).unwrap();
    let mut opt = tuned.optimizer(Sgd::default(), 1.).unwrap();
    let words = Tensor::from_slice(&[1_i64, 1, 3]);
    let loss = || embedding.forward(&words).sum(Kind::Float);
    let before = embedding.ws.detach().copy();
    opt.backward_step(&loss()).unwrap();
    let moved = (&before - &embedding.ws).sum_dim_intlist(1, false, Kind::Float);
    assert_eq!(Vec::<f32>::try_from(moved.round()).unwrap(), [0., 8., 0., 4., 0., 0.]);
    Sgd::default().build(&vs, 1.).unwrap().zero_grad();
    loss().backward();
    let error = opt.step().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsupportedVariable);
    opt.backward_step(&loss()).unwrap();
}
