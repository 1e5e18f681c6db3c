//! Weights that are stored in f16 or bf16 (`Precision::Model`) move as those of torch.optim do, or better.

use std::collections::HashMap;

use crate::common;
use ln_tuning::{AdamW, AdapterOptions, Algorithm, LnTuningConfig, LnTuningModel, Precision};
use tch::{nn, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// One weight per size of gradient, from the smallest that f16 holds to the largest, at several sizes of weights.
fn problem() -> HashMap<&'static str, Tensor> {
    let sizes = [6e-8f32, 1e-5, 1e-3, 0.1, 1., 100., 255., 257., 300., 8000., 60000.];
    let starts = [1e-3f32, 1e-2, 0.27, 1., 3.];
    let (mut start, mut gradient) = (Vec::new(), Vec::new());
    for size in sizes {
        for (i, value) in starts.iter().enumerate() {
            start.push(*value);
            gradient.push(if i % 2 == 0 { size } else { -size });
        }
    }
    let gradient = Tensor::from_slice(&gradient);
    let steps = [1., 1., 0.5, 1.].map(|factor| &gradient * factor);
    HashMap::from([("start", Tensor::from_slice(&start)), ("gradients", Tensor::stack(&steps, 0))])
}

/// The weights after a step for each gradient.
fn trained(kind: Kind, algorithm: Algorithm, lr: f64, data: &HashMap<&str, Tensor>) -> Tensor {
    let mut vs = nn::VarStore::new(Device::Cpu);
    let weight = (vs.root() / "norm").var_copy("weight", &data["start"]);
    if kind == Kind::Half {
        vs.half();
    } else {
        vs.bfloat16();
    }
    let options = AdapterOptions::default().precision(Precision::Model);
    let config = LnTuningConfig::default().target_modules(["norm"]);
    let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
    let mut opt = tuned.optimizer(algorithm, lr).unwrap();
    for gradient in data["gradients"].unbind(0) {
        opt.backward_step(
            &(&weight * gradient.to_kind(kind)).to_kind(Kind::Double).sum(Kind::Double),
        )
        .unwrap();
    }
    weight.detach().to_kind(Kind::Double)
}

#[test]
fn weights_in_the_models_own_kind_move_where_those_of_torch_do_and_stay_finite() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let data = problem();
    let tensors: Vec<(&&str, &Tensor)> = data.iter().collect();
    Tensor::write_safetensors(&tensors, dir.path().join("problem.safetensors")).unwrap();
    common::run_python("half_optimizers.py", &[dir.path().to_str().unwrap()]);
    for (kind, ulp) in [(Kind::Half, 2f64.powi(-10)), (Kind::BFloat16, 2f64.powi(-7))] {
        for (name, algorithm) in [
            ("adamw", Algorithm::from(AdamW::default().wd(0.01))),
            ("sgd", nn::sgd(0.9, 0., 0., false).into()),
        ] {
            for lr in ["0.01", "0.0001", "1e-05", "1e-06"] {
                let file = dir.path().join(format!("{kind:?}-{name}-{lr}.safetensors"));
                let expected: HashMap<String, Tensor> =
                    Tensor::read_safetensors(file).unwrap().into_iter().collect();
                let (torch, exact) = (&expected["torch"], &expected["exact"]);
                let found = trained(kind, algorithm, lr.parse().unwrap(), &data);
                let place =
                    format!("{kind:?} {name} at {lr}: {found} for {torch}, exactly {exact}");
                let reached = exact.abs().le(60000.);
                let finite = found.isfinite().logical_or(&reached.logical_not());
                assert_eq!(finite.all().int64_value(&[]), 1, "not finite: {place}");
                // Never further from the exact result than torch is, but for two roundings.
                let off = |weights: &Tensor| (weights - exact).abs();
                let bound = off(torch).nan_to_num(1e9, 1e9, 1e9) + exact.abs() * ulp * 2. + 1e-7;
                let worse = off(&found).gt_tensor(&bound).logical_and(&reached);
                assert_eq!(worse.any().int64_value(&[]), 0, "worse than torch: {place}");
                let start = data["start"].to_kind(kind).to_kind(Kind::Double);
                let stuck = found.eq_tensor(&start).logical_and(&torch.ne_tensor(&start));
                let stuck = stuck.logical_and(&torch.isfinite());
                assert_eq!(stuck.any().int64_value(&[]), 0, "only torch's moved: {place}");
            }
        }
    }
}

#[test]
fn the_norm_of_large_gradients_in_f16_is_finite_and_clipping_keeps_their_direction() {
    let mut vs = nn::VarStore::new(Device::Cpu);
    let weight = (vs.root() / "norm").var_copy("weight", &Tensor::ones([16], CPU));
    vs.half();
    let options = AdapterOptions::default().precision(Precision::Model);
    let config = LnTuningConfig::default().target_modules(["norm"]);
    let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
    let mut opt = tuned.optimizer(nn::sgd(0., 0., 0., false), 1.).unwrap();
    let factors = Tensor::full([16], 30000., (Kind::Half, Device::Cpu));
    opt.backward(&(&weight * factors).to_kind(Kind::Float).sum(Kind::Float)).unwrap();
    let norm = opt.clip_grad_norm(1.).unwrap();
    assert!((norm.double_value(&[]) / 120000. - 1.).abs() < 1e-6, "{norm}");
    opt.step().unwrap();
    assert_eq!(weight.to_kind(Kind::Float), Tensor::full([16], 0.75, CPU));
}
