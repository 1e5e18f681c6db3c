use super::*;

/// Layers of one input: weights, and a bias for some.
fn layers(kind: Kind, sizes: [i64; 3], from: i64) -> [(Tensor, Option<Tensor>); 3] {
    let mut at = 0;
    sizes.map(|to| {
        at += 1;
        (random(&[to, from], kind), (at != 2).then(|| random(&[to], kind)))
    })
}

fn given(layers: &[(Tensor, Option<Tensor>); 3]) -> [(&Tensor, Option<&Tensor>); 3] {
    layers.each_ref().map(|(weight, bias)| (weight, bias.as_ref()))
}

#[test]
fn products_of_one_input_are_those_of_each_layer_with_one_gradient() {
    tch::manual_seed(7);
    tch::set_num_threads(1);
    let f64s = |x: &Tensor| x.to_kind(Kind::Double);
    for kind in KINDS {
        for shape in [vec![2, 5, 24], vec![7, 24], vec![24]] {
            let layers = layers(kind, [16, 8, 40], 24);
            let x = random(&shape, kind).set_requires_grad(true);
            let found = products(&x, given(&layers)).unwrap().unwrap();
            let ups: Vec<Tensor> = found.iter().map(|y| random(&y.size(), kind)).collect();
            let wide = f64s(&x.detach()).set_requires_grad(true);
            for used in [vec![0, 1, 2], vec![1], vec![0, 2]] {
                let mut all = [wide.shallow_clone(), x.shallow_clone()].into_iter();
                let [expected, own] = [true, false].map(|is_wide| {
                    let x = all.next().unwrap();
                    let sum = used.iter().map(|&at| {
                        let (weight, bias) = &layers[at];
                        let y = match is_wide {
                            true => x.linear(&f64s(weight), bias.as_ref().map(f64s).as_ref()),
                            false => found[at].shallow_clone(),
                        };
                        (f64s(&y) * f64s(&ups[at])).sum(Kind::Double)
                    });
                    let sum = sum.reduce(|a, b| a + b).unwrap();
                    Tensor::run_backward(&[sum], &[&x], true, false).remove(0)
                });
                let rounding =
                    [1e-6, 1.2e-2, 1.5e-3][KINDS.iter().position(|k| *k == kind).unwrap()];
                let largest = expected.abs().max().double_value(&[]);
                let off = off(&own, &expected) / largest;
                assert!(off <= rounding, "{kind:?}, {shape:?}, {used:?}: {off}");
            }
            for (y, (weight, bias)) in found.iter().zip(&layers) {
                // Each is libtorch's own product.
                assert_eq!(*y, x.linear(weight, bias.as_ref()), "{kind:?}");
            }
        }
    }
}

#[test]
fn products_that_train_or_need_no_gradient_are_left_to_libtorch() {
    let layers = layers(Kind::Float, [4, 6, 8], 3);
    let x = random(&[5, 3], Kind::Float);
    assert!(products(&x, given(&layers)).unwrap().is_none());
    let x = x.set_requires_grad(true);
    assert!(no_grad(|| products(&x, given(&layers))).unwrap().is_none());
    assert!(without_fused_functions(|| products(&x, given(&layers))).unwrap().is_none());
    assert!(products(&x, given(&layers)).unwrap().is_some());
    for trained in [&layers[1].0, layers[2].1.as_ref().unwrap()] {
        let _ = trained.set_requires_grad(true);
        assert!(products(&x, given(&layers)).unwrap().is_none());
        let _ = trained.set_requires_grad(false);
    }
}

#[test]
fn products_have_a_second_derivative() {
    let layers = layers(Kind::Float, [4, 6, 8], 3);
    let x = random(&[5, 3], Kind::Float).set_requires_grad(true);
    let [one, two] = [true, false].map(|fused| {
        let all = match fused {
            true => products(&x, given(&layers)).unwrap().unwrap(),
            false => given(&layers).map(|(weight, bias)| x.linear(weight, bias)),
        };
        let sum = all.iter().map(|y| y.square().sum(Kind::Float)).reduce(|a, b| a + b).unwrap();
        let first = Tensor::run_backward(&[sum], &[&x], true, true).remove(0);
        Tensor::run_backward(&[first.square().sum(Kind::Float)], &[&x], false, false).remove(0)
    });
    assert!(off(&one, &two.to_kind(Kind::Double)) <= 1e-3 * two.abs().max().double_value(&[]));
}
