//! The parts of a training step, each beside the plain way to do it: `cargo bench --bench parts`.

mod shapes;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::recompute::{Blocks, Recompute};
use ln_tuning::{AdamW, LnTuningModel};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

const THREADS: i32 = 2;

fn random(shape: &[i64], kind: Kind) -> Tensor {
    (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.02).to_kind(kind)
}

/// Value and gradient for 512 tokens, hidden size 512, a vocabulary of 32,000.
fn loss(c: &mut Criterion) {
    tch::set_num_threads(THREADS);
    let mut group = c.benchmark_group("loss");
    group.sample_size(10);
    for kind in [Kind::Float, Kind::BFloat16] {
        let weight = random(&[32_000, 512], kind);
        let hidden = random(&[512, 512], kind).set_requires_grad(true);
        let targets = Tensor::arange(512, (Kind::Int64, Device::Cpu));
        group.bench_function(BenchmarkId::new("in chunks", format!("{kind:?}")), |b| {
            b.iter(|| {
                let loss = LinearCrossEntropy::default();
                let loss = loss.compute(&hidden, &weight, None, &targets).unwrap();
                Tensor::run_backward(&[loss], &[&hidden], false, false)
            })
        });
        group.bench_function(BenchmarkId::new("all logits", format!("{kind:?}")), |b| {
            b.iter(|| {
                let logits = hidden.linear(&weight, None::<Tensor>).to_kind(Kind::Float);
                let loss = logits.cross_entropy_for_logits(&targets);
                Tensor::run_backward(&[loss], &[&hidden], false, false)
            })
        });
    }
    group.finish();
}

/// Eight blocks of a norm and an MLP, 1,024 tokens of size 256.
fn block(c: &mut Criterion) {
    let vs = nn::VarStore::new(Device::Cpu);
    let blocks: Vec<_> = (0..8)
        .map(|index| {
            let path = vs.root() / index;
            nn::seq()
                .add(nn::layer_norm(&path / "norm", vec![256], Default::default()))
                .add(nn::linear(&path / "up", 256, 1024, Default::default()))
                .add_fn(|x| x.gelu("none"))
                .add(nn::linear(&path / "down", 1024, 256, Default::default()))
        })
        .collect();
    let tuned = LnTuningModel::new(&vs, Default::default()).unwrap();
    let inputs = tuned.optimizer(AdamW::default(), 1e-3).unwrap().trainable_variables().unwrap();
    let x = random(&[1024, 256], Kind::Float);
    let mut group = c.benchmark_group("8 blocks");
    group.sample_size(10);
    for (name, which) in [
        ("kept", Blocks::First(0)),
        ("every second checkpointed", Blocks::EveryNth(2)),
        ("all checkpointed", Blocks::All),
    ] {
        let recompute = Recompute::new(which);
        group.bench_function(name, |b| {
            b.iter(|| {
                recompute
                    .gradients(&inputs, |tape| {
                        let mut h = x.shallow_clone();
                        for block in &blocks {
                            h = &h + tape.run(&h, move |h| Ok(block.forward(h)))?;
                        }
                        Ok(h.square().mean(Kind::Float))
                    })
                    .unwrap()
            })
        });
    }
    group.finish();
}

/// On the norms of Llama-3.2-3B: 57 of 3,072, in bf16.
fn optimizer(c: &mut Criterion) {
    let mut group = c.benchmark_group("57 norms of 3072");
    let vs = shapes::base();
    let tuned = LnTuningModel::new(&vs, shapes::config()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
    let gradients: Vec<Tensor> =
        opt.trainable_variables().unwrap().iter().map(Tensor::ones_like).collect();
    let given = || gradients.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
    group.bench_function("flat gather of gradients", |b| {
        b.iter(|| {
            opt.zero_grad().unwrap();
            opt.backward_with(|_| Ok(((), given()))).unwrap();
        })
    });
    group.bench_function("clip_grad_norm", |b| b.iter(|| opt.clip_grad_norm(1.).unwrap()));
    group.bench_function("AdamW step", |b| b.iter(|| opt.step().unwrap()));
    drop(tuned);
    // tch's own, on the same tensors in f32, as it has no masters.
    let vs = nn::VarStore::new(Device::Cpu);
    let norms: Vec<Tensor> = (0..57)
        .map(|index| vs.root().var(&format!("norm{index}"), &[3072], nn::Init::Const(1.)))
        .collect();
    let mut plain = nn::AdamW::default().build(&vs, 1e-3).unwrap();
    let sums = norms.iter().map(|norm| norm.sum(Kind::Float));
    sums.reduce(|a, b| a + b).unwrap().backward();
    group.bench_function("clip_grad_norm of tch", |b| b.iter(|| plain.clip_grad_norm(1.)));
    group.bench_function("AdamW step of tch", |b| b.iter(|| plain.step()));
    group.finish();
}

/// RMSNorm of 1,024 tokens of size 512, forwards and backwards, the gradient of the weight included.
fn norm(c: &mut Criterion) {
    let mut group = c.benchmark_group("norm");
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = random(&[1024, 512], kind).set_requires_grad(true);
        let weight = Tensor::ones([512], (kind, Device::Cpu)).set_requires_grad(true);
        let upstream = random(&[1024, 512], kind);
        let backward = |y: Tensor| {
            let root = y.view(-1).dot(&upstream.view(-1));
            Tensor::run_backward(&[root], &[&x, &weight], false, false)
        };
        group.bench_function(BenchmarkId::new("fused", format!("{kind:?}")), |b| {
            b.iter(|| backward(x.f_rms_norm([512], Some(&weight), 1e-6).unwrap()))
        });
        // As transformers writes it.
        group.bench_function(BenchmarkId::new("written out", format!("{kind:?}")), |b| {
            b.iter(|| {
                let wide = x.to_kind(Kind::Float);
                let variance = wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
                backward(&weight * (wide * (variance + 1e-6).rsqrt()).to_kind(kind))
            })
        });
    }
    group.finish();
}

/// Fused functions and products of this crate, each beside libtorch's operators, with the sizes of SmolLM2-135M and 1,024
/// tokens. Forwards and backwards to the input, but for products of few rows.
#[cfg(all(fused, feature = "models"))]
mod alone {
    use criterion::{BenchmarkId, Criterion};
    use ln_tuning::alone::{self, Gate, NormForm, Orders};
    use tch::{no_grad, Device, Kind, Tensor};

    use super::{random, THREADS};

    const TOKENS: i64 = 1_024;
    const SIZE: i64 = 576;
    const INNER: i64 = 1_536;
    const KINDS: [Kind; 2] = [Kind::BFloat16, Kind::Float];

    fn input(shape: &[i64], kind: Kind) -> Tensor {
        random(shape, kind).set_requires_grad(true)
    }

    /// The result of a function of this crate.
    fn there<T>(result: ln_tuning::Result<Option<T>>) -> T {
        result.unwrap().expect("a function of this crate")
    }

    /// Both ways to compute outputs, and their gradients to the inputs.
    fn both(
        c: &mut Criterion,
        (group, name): (&str, &str),
        inputs: &[&Tensor],
        ways: [&dyn Fn() -> Vec<Tensor>; 2],
    ) {
        tch::set_num_threads(THREADS);
        let mut group = c.benchmark_group(group);
        group.sample_size(10);
        for (way, compute) in ["ours", "libtorch"].into_iter().zip(ways) {
            let upstream: Vec<Tensor> =
                no_grad(|| compute().iter().map(Tensor::ones_like).collect());
            group.bench_function(BenchmarkId::new(way, name), |b| {
                b.iter(|| {
                    let sums = compute().into_iter().zip(&upstream);
                    let sums = sums.map(|(y, upstream)| y.reshape(-1).dot(&upstream.reshape(-1)));
                    let root = sums.reduce(|a, b| a + b).unwrap();
                    Tensor::run_backward(&[root], inputs, false, false)
                })
            });
        }
        group.finish();
    }

    pub fn norms(c: &mut Criterion) {
        for kind in KINDS {
            let [x, added] = [(); 2].map(|()| input(&[TOKENS, SIZE], kind));
            let weight = Tensor::ones([SIZE], (kind, Device::Cpu)).set_requires_grad(true);
            let bias = Tensor::zeros([SIZE], (kind, Device::Cpu)).set_requires_grad(true);
            let rms = || {
                let sum = &x + &added;
                let normed = sum.f_rms_norm([SIZE], Some(&weight), 1e-6).unwrap();
                vec![sum, normed]
            };
            let layer = || {
                let sum = &x + &added;
                let normed = sum.layer_norm([SIZE], Some(&weight), Some(&bias), 1e-6, true);
                vec![sum, normed]
            };
            let ours = |bias: Option<&Tensor>| {
                let form = if bias.is_some() { NormForm::Layer } else { NormForm::Rms };
                let both = alone::added_norm(&x, &added, Some(&weight), bias, form, 1e-6);
                let (sum, normed) = there(both);
                vec![sum, normed]
            };
            let name = format!("{kind:?}");
            let ways: [&dyn Fn() -> Vec<Tensor>; 2] = [&|| ours(None), &rms];
            both(c, ("sum and RMSNorm", &name), &[&x, &added, &weight], ways);
            let ways: [&dyn Fn() -> Vec<Tensor>; 2] = [&|| ours(Some(&bias)), &layer];
            both(c, ("sum and LayerNorm", &name), &[&x, &added, &weight, &bias], ways);
        }
    }

    pub fn gates(c: &mut Criterion) {
        for kind in KINDS {
            let [gate, up] = [(); 2].map(|()| input(&[TOKENS, INNER], kind));
            let ours = || vec![there(alone::gated(&gate, &up, Gate::Silu))];
            let theirs = || vec![gate.silu() * &up];
            both(c, ("SiLU times up", &format!("{kind:?}")), &[&gate, &up], [&ours, &theirs]);
        }
    }

    pub fn ropes(c: &mut Criterion) {
        for kind in KINDS {
            let [q, k] = [9, 3].map(|heads| input(&[4, TOKENS / 4, heads, 64], kind));
            let [cos, sin] = [(); 2].map(|()| random(&[TOKENS / 4, 1, 64], kind));
            let angles = (cos, sin);
            let ours = || Vec::from(there(alone::turned([&q, &k], &angles, false)));
            // The signs are those of the sines.
            let turned = |x: &Tensor| x * &angles.0 + x.roll([32], [-1]) * &angles.1;
            let theirs = || vec![turned(&q), turned(&k)];
            both(c, ("rope", &format!("{kind:?}")), &[&q, &k], [&ours, &theirs]);
        }
    }

    pub fn attention(c: &mut Criterion) {
        for kind in KINDS {
            let [q, k, v] = [9, 3, 3].map(|heads| input(&[4, heads, TOKENS / 4, 64], kind));
            let ours = || vec![there(alone::attended(&q, &k, &v, 0.125))];
            let theirs = || {
                let mask = None::<&Tensor>;
                vec![Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0., true, 0.125, true)]
            };
            both(c, ("attention", &format!("{kind:?}")), &[&q, &k, &v], [&ours, &theirs]);
        }
    }

    pub fn products(c: &mut Criterion) {
        for kind in KINDS {
            for (from, to) in [(SIZE, SIZE), (SIZE, INNER), (INNER, SIZE), (SIZE, 49_152)] {
                let weight = random(&[to, from], kind);
                let name = format!("{kind:?}, {from} to {to}");
                let orders = Orders::default();
                let x = input(&[TOKENS, from], kind);
                let theirs = || vec![x.linear(&weight, None::<Tensor>)];
                let ours = || vec![alone::linear(&x, &weight, None).unwrap()];
                both(c, ("product", &name), &[&x], [&ours, &theirs]);
                let ours = || vec![there(orders.linear(&x, &weight))];
                both(c, ("product, packed", &name), &[&x], [&ours, &theirs]);
                let mut group = c.benchmark_group("product of few rows");
                for rows in [1, 8] {
                    let x = random(&[rows, from], kind);
                    let name = format!("{name}, {rows}");
                    group.bench_function(BenchmarkId::new("ours", &name), |b| {
                        b.iter(|| alone::linear(&x, &weight, None).unwrap())
                    });
                    group.bench_function(BenchmarkId::new("ours, packed", &name), |b| {
                        b.iter(|| no_grad(|| there(orders.linear(&x, &weight))))
                    });
                    group.bench_function(BenchmarkId::new("libtorch", &name), |b| {
                        b.iter(|| x.linear(&weight, None::<Tensor>))
                    });
                }
                group.finish();
            }
        }
    }
}

criterion_group!(benches, loss, block, optimizer, norm);
#[cfg(all(fused, feature = "models"))]
criterion_group!(
    functions,
    alone::norms,
    alone::gates,
    alone::ropes,
    alone::attention,
    alone::products
);
#[cfg(all(fused, feature = "models"))]
criterion_main!(benches, functions);
#[cfg(not(all(fused, feature = "models")))]
criterion_main!(benches);
