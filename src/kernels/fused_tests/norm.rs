use proptest::prelude::*;

use super::*;

const FORMS: [NormForm; 3] = [NormForm::Rms, NormForm::RmsFromOne, NormForm::Layer];

fn norm_of_operators(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    form: NormForm,
    eps: f64,
) -> Tensor {
    let centred = if form == NormForm::Layer {
        x - x.mean_dim(-1, true, x.kind())
    } else {
        x.shallow_clone()
    };
    let mut y = &centred / (centred.square().mean_dim(-1, true, x.kind()) + eps).sqrt();
    if weight.defined() {
        y *= if form == NormForm::RmsFromOne { weight + 1. } else { weight.shallow_clone() };
    }
    if bias.defined() {
        y + bias
    } else {
        y
    }
}

/// The norm of `x`, and of its sum with something. Weight and bias may be of no shape: there is none.
fn check(x: &Tensor, form: NormForm, [weight, bias]: [Option<&[i64]>; 2]) {
    let (shape, kind) = (x.size(), x.kind());
    // Variance must not be so small that its gradient is large.
    let eps = 1e-2;
    let given = |shape: Option<&[i64]>| shape.map_or(Tensor::new(), |shape| random(shape, kind));
    let there = |x: &Tensor| x.defined().then(|| x.shallow_clone());
    let (weight, bias) = (given(weight), given(bias));
    agree(
        &format!("{form:?}"),
        &[x.shallow_clone(), weight.shallow_clone(), bias.shallow_clone()],
        |of| {
            let (weight, bias) = (there(&of[1]), there(&of[2]));
            let y = norm(&of[0], weight.as_ref(), bias.as_ref(), form, eps);
            vec![y.unwrap().unwrap()]
        },
        |of| vec![norm_of_operators(&of[0], &of[1], &of[2], form, eps)],
    );
    agree(
        &format!("{form:?} of a sum"),
        &[x.shallow_clone(), weight, bias, random(&shape, kind)],
        |of| {
            let (weight, bias) = (there(&of[1]), there(&of[2]));
            let both = added_norm(&of[0], &of[3], weight.as_ref(), bias.as_ref(), form, eps);
            let (sum, norm) = both.unwrap().unwrap();
            vec![sum, norm]
        },
        |of| {
            let sum = &of[0] + &of[3];
            let norm = norm_of_operators(&rounded(&sum, kind), &of[1], &of[2], form, eps);
            vec![sum, norm]
        },
    );
}

#[test]
fn norms_are_those_of_operators() {
    tch::manual_seed(1);
    for kind in KINDS {
        for shape in [
            vec![3, 1],
            vec![2, 5, 7],
            vec![70, 513],
            vec![0, 8],
            vec![3, 0],
            vec![2, 3, 4, 64],
            vec![7],
            vec![2, 40_000],
        ] {
            let size = *shape.last().unwrap();
            for form in FORMS {
                for (weighted, biased) in [(true, true), (true, false), (false, false)] {
                    if biased && form != NormForm::Layer || size > 1000 && !weighted {
                        continue;
                    }
                    let layouts = layouts(&shape, kind);
                    let few = if size > 1000 { 1 } else { layouts.len() };
                    let own = [size];
                    for x in &layouts[..few] {
                        check(x, form, [weighted, biased].map(|there| there.then_some(&own[..])));
                    }
                }
            }
        }
    }
}

/// A weight for each row of a batch, for each of its places, or for the rows of each head, beside a bias for all.
#[test]
fn parts_of_a_batch_have_weights_of_their_own() {
    tch::manual_seed(9);
    for kind in KINDS {
        let x = random(&[3, 70, 2, 13], kind);
        for form in FORMS {
            for parts in [[3, 1, 1, 13], [3, 70, 1, 13], [3, 70, 2, 13]] {
                check(&x, form, [Some(&parts), None]);
                if form == NormForm::Layer {
                    check(&x, form, [Some(&parts), Some(&parts)]);
                    check(&x, form, [Some(&parts), Some(&[13])]);
                    check(&x, form, [Some(&[13]), Some(&parts)]);
                }
            }
            // Each part is what it is alone, to the bit.
            let [weight, bias] = [(); 2].map(|()| random(&[3, 1, 1, 13], kind));
            let bias = (form == NormForm::Layer).then_some(bias);
            let all = norm(&x, Some(&weight), bias.as_ref(), form, 1e-6).unwrap().unwrap();
            for part in 0..3 {
                let own = |of: &Tensor| of.i(part).view(13);
                let bias = bias.as_ref().map(own);
                let one = norm(&x.i(part), Some(&own(&weight)), bias.as_ref(), form, 1e-6);
                assert_eq!(all.i(part), one.unwrap().unwrap(), "{form:?} in {kind:?}");
            }
        }
        let weight = |shape: &[i64]| random(shape, kind);
        for shape in [&[2, 1, 1, 13][..], &[3, 13], &[1, 70, 1, 13], &[1, 70, 2, 13], &[70, 2, 13]]
        {
            let declined = norm(&x, Some(&weight(shape)), None, NormForm::Rms, 1e-6).unwrap();
            assert!(declined.is_none(), "{shape:?}");
        }
    }
}

/// Rows take the weights in turn; parts of a batch may have others.
#[test]
fn heads_have_weights_of_their_own() {
    tch::manual_seed(12);
    for kind in KINDS {
        for x in layouts(&[3, 70, 2, 13], kind) {
            for form in FORMS {
                for weight in [&[2, 13][..], &[1, 1, 2, 13], &[3, 1, 2, 13]] {
                    check(&x, form, [Some(weight), None]);
                }
            }
        }
        for (shape, weight) in
            [([1, 1, 5, 64], [5, 64]), ([2, 0, 5, 8], [5, 8]), ([2, 3, 1, 8], [1, 8])]
        {
            check(&random(&shape, kind), NormForm::Layer, [Some(&weight), None]);
        }
        let x = random(&[3, 70, 2, 13], kind);
        // Each head is what it is alone, to the bit.
        let weight = random(&[2, 13], kind);
        let all = norm(&x, Some(&weight), None, NormForm::Layer, 1e-6).unwrap().unwrap();
        for head in 0..2 {
            let own = x.select(2, head).contiguous();
            let one = norm(&own, Some(&weight.i(head)), None, NormForm::Layer, 1e-6);
            assert_eq!(all.select(2, head), one.unwrap().unwrap(), "{kind:?}");
        }
        let bias = random(&[13], kind);
        assert!(norm(&x, Some(&weight), Some(&bias), NormForm::Layer, 1e-6).unwrap().is_none());
    }
}

/// Those of transformers in f32, then. In kinds of 16 bits transformers rounds once more in between; libtorch does not.
#[test]
fn rms_norms_have_the_bits_of_operators() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    tch::manual_seed(10);
    let sizes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33, 63, 64, 100, 511, 512, 513, 576, 1024];
    for size in sizes.into_iter().chain([2048, 3072, 4099, 8192, 16_384 + 544, 70_001]) {
        for kind in KINDS {
            let spread = random(&[9, 1], Kind::Float).exp() * 3.;
            let x = (random(&[9, size], Kind::Float) * spread).to_kind(kind);
            let added = random(&[9, size], kind);
            let weight = random(&[size], kind);
            let operators = |x: &Tensor| x.rms_norm([size], Some(&weight), 1e-6);
            let found = norm(&x, Some(&weight), None, NormForm::Rms, 1e-6).unwrap().unwrap();
            assert_eq!(found, operators(&x), "{size} in {kind:?}");
            let both = added_norm(&x, &added, Some(&weight), None, NormForm::Rms, 1e-6);
            let (sum, found) = both.unwrap().unwrap();
            assert_eq!(sum, &x + &added, "{size} in {kind:?}");
            assert_eq!(found, operators(&sum), "{size} in {kind:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_norm_is_that_of_operators(
        (a, b, size, layout) in (0..4_i64, 1..40_i64, 1..90_i64, 0..5_usize),
        (kind, form, weighted, biased) in (0..3_usize, 0..3_usize, any::<bool>(), any::<bool>()),
    ) {
        let x = layouts(&[a, b, size], KINDS[kind]).swap_remove(layout);
        let (whole, parts) = ([size], [a, 1, size]);
        let weight = if biased { &whole[..] } else { &parts };
        let biased = biased && FORMS[form] == NormForm::Layer;
        check(&x, FORMS[form], [weighted.then_some(weight), biased.then_some(&parts[..])]);
    }
}
