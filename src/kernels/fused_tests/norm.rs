use super::*;

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

#[test]
fn norms_are_those_of_operators() {
    tch::manual_seed(1);
    for kind in KINDS {
        for shape in [
            vec![3, 1],
            vec![2, 5, 7],
            vec![70, 513],
            vec![0, 8],
            vec![2, 3, 4, 64],
            vec![7],
            vec![2, 40_000],
        ] {
            let size = *shape.last().unwrap();
            for form in [NormForm::Rms, NormForm::RmsFromOne, NormForm::Layer] {
                for (weighted, biased) in [(true, true), (true, false), (false, false)] {
                    if biased && form != NormForm::Layer || size > 1000 && !weighted {
                        continue;
                    }
                    let layouts = layouts(&shape, kind);
                    let few = if size > 1000 { 1 } else { layouts.len() };
                    for x in &layouts[..few] {
                        let given =
                            |there: bool| if there { random(&[size], kind) } else { Tensor::new() };
                        let (weight, bias) = (given(weighted), given(biased));
                        let there = |x: &Tensor| x.defined().then(|| x.shallow_clone());
                        // Variance must not be so small that its gradient is large.
                        let eps = 1e-2;
                        let inputs =
                            [x.shallow_clone(), weight.shallow_clone(), bias.shallow_clone()];
                        agree(
                            &format!("{form:?}"),
                            &inputs,
                            |of| {
                                let (weight, bias) = (there(&of[1]), there(&of[2]));
                                let y = norm(&of[0], weight.as_ref(), bias.as_ref(), form, eps);
                                vec![y.unwrap().unwrap()]
                            },
                            |of| vec![norm_of_operators(&of[0], &of[1], &of[2], form, eps)],
                        );
                        let added = random(&shape, kind);
                        let inputs = [x.shallow_clone(), weight, bias, added];
                        agree(
                            &format!("{form:?} of a sum"),
                            &inputs,
                            |of| {
                                let (weight, bias) = (there(&of[1]), there(&of[2]));
                                let both = added_norm(
                                    &of[0],
                                    &of[3],
                                    weight.as_ref(),
                                    bias.as_ref(),
                                    form,
                                    eps,
                                );
                                let (sum, norm) = both.unwrap().unwrap();
                                vec![sum, norm]
                            },
                            |of| {
                                let sum = &of[0] + &of[3];
                                // The sum is rounded to its kind.
                                let rounded = (sum.to_kind(kind).to_kind(Kind::Double) - &sum)
                                    .detach()
                                    + &sum;
                                let norm = norm_of_operators(&rounded, &of[1], &of[2], form, eps);
                                vec![sum, norm]
                            },
                        );
                    }
                }
            }
        }
    }
}
