use super::*;

#[test]
fn cross_entropy_is_that_of_operators() {
    tch::manual_seed(5);
    let f64s = |x: &Tensor| x.to_kind(Kind::Double);
    for kind in KINDS {
        for (rows, classes) in [(1, 1), (5, 7), (3, 513), (0, 4), (4, 40_000)] {
            let targets = Tensor::randint(classes, [rows, 1], (Kind::Int64, Device::Cpu));
            let bias = random(&[classes], Kind::Float);
            for (bias, scale, cap, smoothing, z_loss) in [
                (None, 1., None, 0., 0.),
                (Some(&bias), 0.7, Some(2.), 0.1, 0.2),
                (None, 3., None, 0.3, 0.),
            ] {
                let logits = random(&[rows, classes], kind) * 2.;
                let leaf = f64s(&logits).set_requires_grad(true);
                let mut x = bias.map_or(leaf.shallow_clone(), |bias| &leaf + f64s(bias)) * scale;
                if let Some(cap) = cap {
                    x = (x / cap).tanh() * cap;
                }
                let denominator = x.logsumexp(-1, true);
                let picked = x.gather(1, &targets, false) * (1. - smoothing)
                    + x.mean_dim(-1, true, Kind::Double) * smoothing;
                let losses = &denominator - &picked + denominator.square() * z_loss;
                let gradient =
                    Tensor::run_backward(&[losses.sum(Kind::Double)], &[&leaf], false, false)
                        .remove(0)
                        / scale;
                let columns =
                    [(); 3].map(|()| Tensor::zeros([rows, 1], (Kind::Float, Device::Cpu)));
                let into = None;
                let how = CrossEntropy { bias, scale, cap, smoothing, z_loss, wanted: true, into };
                let untouched = logits.copy();
                let only = CrossEntropy { wanted: false, ..how };
                assert!(cross_entropy(&logits, &targets, &columns, only).unwrap());
                assert_eq!(logits, untouched);
                assert!(cross_entropy(&logits, &targets, &columns, how).unwrap());
                let [largest, peak, target] = &columns;
                let epsilon = if kind == Kind::Float { 1e-6 } else { 4e-3 };
                assert!(off(&(largest - peak.log()), &denominator) <= 4e-6 * 20.);
                assert!(off(target, &picked) <= 4e-6);
                let off = off(&logits, &gradient);
                assert!(off <= epsilon, "{kind:?}, {how:?}: {off}");
            }
        }
    }
    let columns = [(); 3].map(|()| Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)));
    let how = CrossEntropy {
        bias: None,
        scale: 1.,
        cap: None,
        smoothing: 0.,
        z_loss: 0.,
        wanted: true,
        into: None,
    };
    let outside = Tensor::from_slice2(&[[4_i64]]);
    let error = cross_entropy(&random(&[1, 4], Kind::Float), &outside, &columns, how).unwrap_err();
    assert!(error.to_string().contains("the target 4 is not one of 4 classes"), "{error}");
}
