//! The loss through a head is that of the logits, in value and gradients.

use crate::nets;
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel};
use proptest::prelude::*;
use tch::{nn, nn::Module, no_grad, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const VOCAB: i64 = 67;
const SIZE: i64 = 12;

/// Hidden states, a head and targets; `masked` of every ten tokens do not count.
struct Case {
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
}

impl Case {
    fn new(shape: &[i64], masked: i64, kind: Kind) -> Case {
        tch::set_num_threads(1);
        let wave = |shape: &[i64], step: f64, phase: f64| {
            let count: i64 = shape.iter().product();
            ((Tensor::arange(count, (Kind::Double, Device::Cpu)) * step + phase).sin() * 1.5)
                .view(shape)
                .to_kind(kind)
        };
        let states: Vec<i64> = shape.iter().copied().chain([SIZE]).collect();
        let tokens: i64 = shape.iter().product();
        let index = Tensor::arange(tokens, (Kind::Int64, Device::Cpu));
        let dropped = (&index * 7).remainder(10).lt(masked);
        let targets = (&index * 31).remainder(VOCAB).masked_fill(&dropped, -100).view(shape);
        Case {
            hidden: wave(&states, 0.77, 0.3),
            weight: wave(&[VOCAB, SIZE], 1.31, 0.1),
            bias: wave(&[VOCAB], 2.1, 0.5),
            targets,
        }
    }

    /// Requires gradients of the three, as asked.
    fn train(mut self, hidden: bool, weight: bool, bias: bool) -> Case {
        self.hidden = self.hidden.set_requires_grad(hidden);
        self.weight = self.weight.set_requires_grad(weight);
        self.bias = self.bias.set_requires_grad(bias);
        self
    }

    fn loss(&self, options: &LinearCrossEntropy) -> Tensor {
        options.compute(&self.hidden, &self.weight, Some(&self.bias), &self.targets).unwrap()
    }

    /// The same, from all logits, in f64.
    fn naive(&self, options: &LinearCrossEntropy) -> Tensor {
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        let logits = double(&self.hidden).view([-1, SIZE]).matmul(&double(&self.weight).tr())
            + double(&self.bias);
        let mut logits = logits * options.logit_scale;
        if let Some(cap) = options.logit_cap {
            logits = (logits / cap).tanh() * cap;
        }
        let targets = self.targets.view(-1);
        let counts = targets.ne(options.ignore_index);
        let kept = counts.nonzero().view(-1);
        let logits = logits.index_select(0, &kept);
        let sum = logits.cross_entropy_loss::<Tensor>(
            &targets.index_select(0, &kept),
            None,
            tch::Reduction::Sum,
            options.ignore_index,
            options.label_smoothing,
        );
        let sum =
            sum + logits.logsumexp([-1i64], false).square().sum(Kind::Double) * options.z_loss;
        match options.reduction {
            Reduction::Sum => sum,
            Reduction::SumOver(count) => sum / count,
            _ => sum / counts.sum(Kind::Double).clamp_min(1.),
        }
    }

    fn leaves(&self) -> Vec<Tensor> {
        let all = [&self.hidden, &self.weight, &self.bias];
        all.into_iter().filter(|t| t.requires_grad()).map(Tensor::shallow_clone).collect()
    }

    /// Both ways, in value and in every gradient that is asked for, to `tolerance` of the largest element.
    fn check(&self, options: &LinearCrossEntropy, tolerance: f64) {
        let (own, naive) = (self.loss(options), self.naive(options));
        let wide = if self.hidden.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        assert_eq!((own.kind(), own.dim()), (wide, 0));
        assert_close(&own, &naive, tolerance, "loss", options);
        let leaves = self.leaves();
        assert_eq!(own.requires_grad(), !leaves.is_empty());
        if leaves.is_empty() {
            return;
        }
        // Scaled as for f16, so that what comes from above is seen to be used.
        let own = Tensor::run_backward(&[own * 64.], &leaves, false, false);
        let naive = Tensor::run_backward(&[naive * 64.], &leaves, false, false);
        for ((own, naive), leaf) in own.iter().zip(&naive).zip(&leaves) {
            assert_eq!(own.kind(), leaf.kind());
            assert_close(own, naive, tolerance, "gradient", options);
        }
    }
}

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str, options: &LinearCrossEntropy) {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let off = (&a - &b).abs().max().double_value(&[]);
    let scale = b.abs().max().double_value(&[]).max(1.);
    assert!(off <= tolerance * scale, "{what}: {off} off, of {scale}, with {options:?}");
}

fn options() -> impl Strategy<Value = LinearCrossEntropy> {
    let cap = prop_oneof![Just(None), (0.5..30f64).prop_map(Some)];
    let reduction = prop_oneof![
        Just(Reduction::Mean),
        Just(Reduction::Sum),
        (1i64..50).prop_map(Reduction::SumOver)
    ];
    let some = |range: std::ops::Range<f64>| prop_oneof![Just(0.), range];
    (cap, reduction, some(0.01..1.), some(1e-4..0.1), 0.1..3f64, 1i64..40).prop_map(
        |(cap, reduction, smoothing, z_loss, scale, chunk)| {
            LinearCrossEntropy::default()
                .logit_cap(cap)
                .reduction(reduction)
                .label_smoothing(smoothing)
                .z_loss(z_loss)
                .logit_scale(scale)
                .chunk_size(chunk)
        },
    )
}

proptest! {
    #[test]
    fn every_mixture_of_options_agrees_with_the_logits(
        options in options(),
        (masked, train) in (0i64..=10, any::<[bool; 3]>()),
        double in any::<bool>(),
    ) {
        let (kind, tolerance) = if double { (Kind::Double, 1e-12) } else { (Kind::Float, 1e-5) };
        let case = Case::new(&[3, 11], masked, kind).train(train[0], train[1], train[2]);
        case.check(&options, tolerance);
    }
}

#[test]
fn low_kinds_agree_as_far_as_they_can() {
    for (kind, tolerance) in [(Kind::BFloat16, 1e-2), (Kind::Half, 1e-3)] {
        for chunk in [None, Some(5)] {
            let options = LinearCrossEntropy::default().chunk_size(chunk).logit_cap(20.);
            let case = Case::new(&[2, 13], 3, kind).train(true, true, true);
            case.check(&options, tolerance);
        }
    }
}

#[test]
fn without_masked_tokens_and_without_a_bias() {
    let case = Case::new(&[17], 0, Kind::Float).train(true, false, false);
    let plain = Case { bias: Tensor::zeros([VOCAB], CPU), ..case };
    let own = LinearCrossEntropy::default()
        .compute(&plain.hidden, &plain.weight, None, &plain.targets)
        .unwrap();
    let naive = plain.naive(&LinearCrossEntropy::default());
    assert_close(&own, &naive, 1e-6, "loss", &LinearCrossEntropy::default());
}

#[test]
fn where_no_token_counts_the_loss_and_its_gradient_are_zero() {
    for shape in [[2, 4], [0, 4]] {
        let case = Case::new(&shape, 10, Kind::Float).train(true, true, true);
        let loss = case.loss(&LinearCrossEntropy::default());
        assert_eq!(loss.double_value(&[]), 0.);
        loss.backward();
        for leaf in case.leaves() {
            assert!(leaf.grad().defined());
            assert_eq!(leaf.grad().abs().sum(Kind::Float).double_value(&[]), 0.);
        }
    }
}

#[test]
fn under_no_grad_there_is_a_value_and_no_graph() {
    let case = Case::new(&[2, 9], 2, Kind::Float).train(true, true, false);
    let options = LinearCrossEntropy::default();
    let loss = no_grad(|| case.loss(&options));
    assert!(!loss.requires_grad());
    assert_eq!(loss.double_value(&[]), case.loss(&options).double_value(&[]));
}

#[test]
fn a_tied_embedding_that_trains_gets_both_gradients() {
    let case = Case::new(&[3, 5], 2, Kind::Float).train(false, true, false);
    let ids = case.targets.clamp_min(0);
    let both = |loss: &dyn Fn(&Case) -> Tensor| {
        let hidden = Tensor::embedding(&case.weight, &ids, -1, false, false).tanh();
        let tied = Case {
            hidden,
            weight: case.weight.shallow_clone(),
            bias: case.bias.shallow_clone(),
            targets: case.targets.shallow_clone(),
        };
        Tensor::run_backward(&[loss(&tied)], &[&case.weight], false, false).remove(0)
    };
    let options = LinearCrossEntropy::default().chunk_size(4);
    let own = both(&|case| case.loss(&options));
    let naive = both(&|case| case.naive(&options));
    assert_close(&own, &naive, 1e-5, "gradient", &options);
}

/// Passes whose losses are divided by the number of tokens of the whole batch add up to it.
#[test]
fn losses_over_a_count_of_tokens_add_up() {
    let case = Case::new(&[4, 8], 3, Kind::Float).train(true, false, false);
    let count = case.targets.ne(-100).sum(Kind::Int64).int64_value(&[]);
    let options = LinearCrossEntropy::default();
    let whole = case.loss(&options).double_value(&[]);
    let over = options.reduction(Reduction::SumOver(count));
    let mut sum = 0.;
    for row in 0..4 {
        let (hidden, targets) = (case.hidden.get(row), case.targets.get(row));
        let loss = over.compute(&hidden, &case.weight, Some(&case.bias), &targets).unwrap();
        sum += loss.double_value(&[]);
    }
    assert!((whole - sum).abs() < 1e-6, "{whole} {sum}");
}

#[test]
fn an_infinite_loss_stays_infinite_and_logits_far_apart_stay_exact() {
    let hidden = Tensor::from_slice2(&[[1e4f32, 0.], [1., 1.]]).set_requires_grad(true);
    let weight = Tensor::from_slice2(&[[1f32, 0.], [-1., 0.], [0., 1.]]);
    let loss = |hidden: &Tensor| {
        let targets = Tensor::from_slice(&[1i64, 2]);
        LinearCrossEntropy::default().compute(hidden, &weight, None, &targets).unwrap()
    };
    let expected =
        hidden.matmul(&weight.tr()).cross_entropy_for_logits(&Tensor::from_slice(&[1i64, 2]));
    assert_eq!(loss(&hidden).double_value(&[]), expected.double_value(&[]));
    assert!(loss(&(&hidden * f64::INFINITY)).double_value(&[]).is_nan());
}

#[test]
fn an_adapter_trains_through_it() {
    let mut vs = nn::VarStore::new(Device::Cpu);
    let config = nn::EmbeddingConfig { ws_init: nn::Init::Const(0.), ..Default::default() };
    let embedding = nn::embedding(vs.root() / "embed", VOCAB, SIZE, config);
    no_grad(|| embedding.ws.shallow_clone().copy_(&nets::noise(&[VOCAB, SIZE], 1)));
    let norm = nn::layer_norm(vs.root() / "norm", vec![SIZE], Default::default());
    vs.freeze();
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let targets = Case::new(&[4, 7], 2, Kind::Float).targets;
    let ids = targets.clamp_min(0);
    // The head is tied, and frozen.
    let loss = || {
        let hidden = norm.forward(&embedding.forward(&ids));
        LinearCrossEntropy::default().compute(&hidden, &embedding.ws, None, &targets).unwrap()
    };
    let mut opt = tuned.optimizer(AdamW::default(), 0.05).unwrap();
    opt.set_accumulation(2).unwrap();
    let first = loss().double_value(&[]);
    for _ in 0..20 {
        opt.backward_step_clip_norm(&loss(), 1.).unwrap();
    }
    let last = loss().double_value(&[]);
    assert!(last < first - 0.1, "{first} -> {last}");
    assert!(!embedding.ws.grad().defined());
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new(&[2, 3], 0, Kind::Float);
    let run = |options: LinearCrossEntropy, hidden: &Tensor, weight: &Tensor, targets: &Tensor| {
        options.compute(hidden, weight, Some(&case.bias), targets).unwrap_err().kind()
    };
    let options = LinearCrossEntropy::default();
    let Case { hidden, weight, targets, .. } = &case;
    let wrong = [
        (&hidden.narrow(2, 0, 3), weight, targets, ErrorKind::ShapeMismatch),
        (hidden, &weight.narrow(0, 0, 3), targets, ErrorKind::ShapeMismatch),
        (hidden, &weight.get(0), targets, ErrorKind::ShapeMismatch),
        (hidden, weight, &targets.view(-1), ErrorKind::ShapeMismatch),
        (hidden, weight, &targets.to_kind(Kind::Float), ErrorKind::KindMismatch),
        (hidden, &weight.to_kind(Kind::BFloat16), targets, ErrorKind::KindMismatch),
        (&hidden.to_kind(Kind::Int64), weight, targets, ErrorKind::KindMismatch),
        (hidden, weight, &(targets + VOCAB), ErrorKind::InvalidArgument),
        (hidden, weight, &(targets - 200), ErrorKind::InvalidArgument),
    ];
    for (hidden, weight, targets, kind) in wrong {
        assert_eq!(run(options, hidden, weight, targets), kind);
    }
    for options in [
        options.label_smoothing(-0.1),
        options.label_smoothing(f64::NAN),
        options.z_loss(-1.),
        options.logit_scale(f64::INFINITY),
        options.logit_cap(0.),
        options.chunk_size(0),
        options.reduction(Reduction::SumOver(0)),
    ] {
        assert_eq!(run(options, hidden, weight, targets), ErrorKind::InvalidArgument);
    }
}
