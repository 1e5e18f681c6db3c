//! Each fused function beside libtorch's operators, which compute in f64 on the CPU: values and gradients.

use anyhow::{Context, Result};
use ln_tuning::alone::{
    added_norm, cross_entropy, gated, gated_in_one, gradients, norm, turned, Gate, NormForm,
};
use tch::{Device, Kind, Tensor};

/// One function, on inputs of one form and kind.
#[derive(Debug)]
pub struct Check {
    pub name: String,
    /// The largest difference, where 1 is what one rounding to the kind and sums in f32 may make of it.
    pub off: f64,
}

/// An input on the CPU, and the same on the device, as a view of the same form.
struct Input {
    cpu: Tensor,
    there: Tensor,
}

/// Inputs of the checks, all on one device and of one kind.
#[derive(Clone, Copy)]
struct Place {
    device: Device,
    kind: Kind,
}

impl Place {
    fn random(self, shape: &[i64]) -> Input {
        self.viewed(shape, |x| x)
    }

    fn viewed(self, shape: &[i64], view: impl Fn(Tensor) -> Tensor) -> Input {
        let cpu = Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(self.kind);
        let there = cpu.to_device(self.device);
        Input { cpu: view(cpu), there: view(there) }
    }

    /// Dense, a part of wider rows that begins at an odd place, every second row, and one row for all.
    fn layouts(self, rows: i64, size: i64) -> Vec<Input> {
        vec![
            self.random(&[rows, size]),
            self.viewed(&[rows, size + 3], |x| x.narrow(1, 3, size)),
            self.viewed(&[rows, 2 * size], |x| x.narrow(1, size, size)),
            self.viewed(&[1, size], |x| x.expand([rows, size], false)),
        ]
    }

    /// Compares `fused` with `operators` in values and in the gradients of all inputs.
    fn check(
        self,
        name: String,
        inputs: &[&Input],
        fused: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
        operators: impl Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<Check> {
        let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
        let there: Vec<Tensor> = inputs.iter().map(|input| leaf(&input.there)).collect();
        let wide: Vec<Tensor> =
            inputs.iter().map(|input| leaf(&input.cpu.to_kind(Kind::Double))).collect();
        let found = fused(&there);
        let found = found.with_context(|| name.clone())?;
        let expected = operators(&wide);
        let upstream: Vec<Input> = found.iter().map(|y| self.random(&y.size())).collect();
        let (up, wide_up): (Vec<_>, Vec<_>) = upstream
            .into_iter()
            .map(|input| (input.there, input.cpu.to_kind(Kind::Double)))
            .unzip();
        let of = |inputs: &[Tensor]| inputs.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        let back = gradients(&found, &up, &there.iter().collect::<Vec<_>>());
        let back = back.with_context(|| format!("{name}, backward"))?;
        let expected_back = gradients(&expected, &wide_up, &wide.iter().collect::<Vec<_>>())?;
        let mut off: f64 = 0.;
        for (found, expected) in
            of(&found).iter().chain(&back).zip(of(&expected).iter().chain(&expected_back))
        {
            anyhow::ensure!(found.size() == expected.size(), "{name}: {found:?}, {expected:?}");
            anyhow::ensure!(found.kind() == self.kind, "{name}: {found:?}");
            off = off.max(self.off(found, expected));
        }
        Ok(Check { name: format!("{name}, {:?}", self.kind), off })
    }

    fn off(self, found: &Tensor, expected: &Tensor) -> f64 {
        if expected.numel() == 0 {
            return 0.;
        }
        let half_a_unit = match self.kind {
            Kind::BFloat16 => 2f64.powi(-8),
            Kind::Half => 2f64.powi(-11),
            _ => 2f64.powi(-24),
        };
        let found = found.detach().to_device(Device::Cpu).to_kind(Kind::Double);
        let expected = expected.detach();
        let sums = 1e-5 * expected.abs().max().double_value(&[]).max(1.);
        let allowed = expected.abs() * half_a_unit + sums;
        let off = ((found - expected).abs() / allowed).max().double_value(&[]);
        // NaN is no number that is small.
        if off.is_nan() {
            f64::INFINITY
        } else {
            off
        }
    }
}

/// All checks of one kind. Without kernels of this kind on this device, an error.
pub fn checks(device: Device, kind: Kind) -> Result<Vec<Check>> {
    let place = Place { device, kind };
    let mut all = Vec::new();
    for (rows, size) in [(7, 64), (10, 7), (0, 8)] {
        for form in [NormForm::Rms, NormForm::RmsFromOne, NormForm::Layer] {
            for x in place.layouts(rows, size) {
                let biased = form == NormForm::Layer;
                all.push(norms(place, &x, form, [true, biased, false])?);
            }
        }
        let x = place.random(&[rows, size]);
        all.push(norms(place, &x, NormForm::Layer, [true, false, true])?);
        all.push(norms(place, &x, NormForm::Layer, [false, false, true])?);
        all.push(norms(place, &x, NormForm::Rms, [false, false, false])?);
    }
    all.extend(norms_of_parts(place)?);
    // Several warps in a row; more columns than registers, in vectors and one by one; more rows than blocks.
    for (rows, size) in [(6, 1160), (3, 8208), (3, 1031), (2100, 8)] {
        for form in [NormForm::Rms, NormForm::Layer] {
            let x = place.random(&[rows, size]);
            all.push(norms(place, &x, form, [true, form == NormForm::Layer, true])?);
        }
    }
    for (rows, size) in [(7, 64), (5, 9), (2, 4104), (0, 8)] {
        for gate in [Gate::Gelu, Gate::GeluTanh, Gate::QuickGelu, Gate::Relu, Gate::Silu] {
            let few = if rows == 7 { 4 } else { 1 };
            let ups = place.layouts(rows, size).into_iter().rev();
            for (x, up) in place.layouts(rows, size).iter().zip(ups).take(few) {
                all.push(place.check(
                    format!("{gate:?} of {rows} × {size}"),
                    &[x, &up],
                    |of| Ok(vec![gated(&of[0], &of[1], gate)?.context("no kernel")?]),
                    |of| vec![activated(&of[0], gate) * &of[1]],
                )?);
            }
            all.push(place.check(
                format!("{gate:?} of {rows} × {size} in one"),
                &[&place.random(&[rows, 2 * size])],
                |of| Ok(vec![gated_in_one(&of[0], gate)?.context("no kernel")?]),
                |of| {
                    let both = of[0].chunk(2, -1);
                    vec![activated(&both[0], gate) * &both[1]]
                },
            )?);
        }
    }
    for (batch, length, dim, dims) in
        [(2, 5, 64, 64), (2, 5, 80, 32), (1, 3, 22, 6), (3, 2, 14, 14), (0, 3, 8, 8)]
    {
        for side_by_side in [false, true] {
            for each_row in [false, true] {
                all.extend(rotations(place, [batch, length, dim, dims], side_by_side, each_row)?);
            }
        }
    }
    // The counting runtime gives zeros for numbers of 8 bytes and fewer.
    for (rows, classes) in [(3, 4096), (5, 1031), (4, 7), (0, 8)] {
        all.extend(cross_entropies(place, rows, classes)?);
    }
    Ok(all)
}

/// Cross entropy of logits in f32, whose gradient is of the kind.
fn cross_entropies(place: Place, rows: i64, classes: i64) -> Result<Vec<Check>> {
    let wide = Place { kind: Kind::Float, ..place };
    let mut all = Vec::new();
    for (cap, smoothing, z_loss) in [(None, 0., 0.), (Some(3.), 0.1, 0.2)] {
        let logits = wide.random(&[rows, classes]);
        let targets = Tensor::randint(classes, [rows, 1], (Kind::Int64, Device::Cpu));
        let there = targets.to_device(place.device);
        let found = cross_entropy(&logits.there, &there, (cap, smoothing, z_loss), place.kind)?;
        let [largest, peak, target, gradient] = found.context("no kernel")?;
        let leaf = logits.cpu.to_kind(Kind::Double).set_requires_grad(true);
        let x = cap.map_or(leaf.shallow_clone(), |cap| (&leaf / cap).tanh() * cap);
        let denominator = x.logsumexp(-1, true);
        let picked = x.gather(1, &targets, false) * (1. - smoothing)
            + x.mean_dim(-1, true, Kind::Double) * smoothing;
        let loss = &denominator - &picked + denominator.square() * z_loss;
        let expected = gradients(&[loss.sum(Kind::Double)], &[Tensor::from(1f64)], &[&leaf])?;
        let home = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
        let off = wide.off(&(home(&largest) - home(&peak).log()), &denominator);
        let off =
            off.max(wide.off(&home(&target), &picked)).max(place.off(&gradient, &expected[0]));
        let name = format!("cross entropy of {rows} × {classes}, cap {cap:?}, {:?}", place.kind);
        all.push(Check { name, off });
    }
    Ok(all)
}

/// A norm of `x`, of its sum with something if `added`. The weight and the bias may be absent.
struct Norms<'a> {
    x: &'a Input,
    weight: Option<Input>,
    bias: Option<Input>,
    form: NormForm,
    added: bool,
}

impl Norms<'_> {
    fn check(&self, place: Place) -> Result<Check> {
        let Norms { x, weight, bias, form, added } = self;
        let (form, eps) = (*form, 1e-2);
        let more = place.random(&x.cpu.size());
        let given = [Some(*x), weight.as_ref(), bias.as_ref(), added.then_some(&more)];
        let inputs: Vec<&Input> = given.into_iter().flatten().collect();
        let parts = |of: &[Tensor]| {
            let mut rest = of[1..].iter().map(Tensor::shallow_clone);
            let weight = weight.is_some().then(|| rest.next()).flatten();
            let bias = bias.is_some().then(|| rest.next()).flatten();
            (weight, bias, rest.next())
        };
        let shape = |x: &Option<Input>| x.as_ref().map_or(Vec::new(), |x| x.cpu.size());
        let name = format!(
            "{form:?} of {:?} with weights {:?} and biases {:?}{}",
            x.cpu.size(),
            shape(weight),
            shape(bias),
            if *added { " behind a sum" } else { "" },
        );
        let fused = |of: &[Tensor]| {
            let (weight, bias, added) = parts(of);
            let (weight, bias) = (weight.as_ref(), bias.as_ref());
            Ok(match added {
                Some(added) => {
                    let both = added_norm(&of[0], &added, weight, bias, form, eps)?;
                    both.map(|(sum, norm)| vec![sum, norm]).context("no kernel")?
                }
                None => vec![norm(&of[0], weight, bias, form, eps)?.context("no kernel")?],
            })
        };
        let operators = |of: &[Tensor]| {
            let (weight, bias, added) = parts(of);
            let sum = added.map(|added| &of[0] + added);
            // The norm is that of the sum as it is kept.
            let rounded = sum.as_ref().map(|sum| {
                let kept = sum.to_kind(place.kind).to_kind(Kind::Double);
                (kept - sum).detach() + sum
            });
            let x = rounded.as_ref().unwrap_or(&of[0]);
            let centred = match form {
                NormForm::Layer => x - x.mean_dim(-1, true, Kind::Double),
                _ => x.shallow_clone(),
            };
            let mut y = &centred / (centred.square().mean_dim(-1, true, Kind::Double) + eps).sqrt();
            if let Some(weight) = weight {
                y *= if form == NormForm::RmsFromOne { weight + 1. } else { weight };
            }
            if let Some(bias) = bias {
                y += bias;
            }
            sum.into_iter().chain([y]).collect()
        };
        place.check(name, &inputs, fused, operators)
    }
}

/// Norms of rows, with one weight and one bias for all.
fn norms(
    place: Place,
    x: &Input,
    form: NormForm,
    [weighted, biased, added]: [bool; 3],
) -> Result<Check> {
    let size = x.cpu.size()[1];
    let own = |there: bool| there.then(|| place.random(&[size]));
    Norms { x, weight: own(weighted), bias: own(biased), form, added }.check(place)
}

/// Norms of a batch whose rows have weights and biases of their own: parts of wider rows, as those of several adapters
/// stand.
fn norms_of_parts(place: Place) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    for (batch, length, size) in [
        (3, 2, 64),
        (2, 5, 7),
        (5, 1, 1031),
        (2, 3, 1160),
        (1, 4, 8),
        (3, 700, 8),
        (2, 0, 8),
        (0, 2, 8),
    ] {
        let x = place.random(&[batch, length, size]);
        let of_rows = || {
            let wide = place.viewed(&[batch, 2 * size + 16], |x| x.narrow(1, 8, size).unsqueeze(1));
            Some(wide)
        };
        let of_places = || Some(place.random(&[batch, length, size]));
        let of_all = || Some(place.random(&[size]));
        let mut check = |form, weight, bias, added| -> Result<()> {
            all.push(Norms { x: &x, weight, bias, form, added }.check(place)?);
            Ok(())
        };
        check(NormForm::Rms, of_rows(), None, true)?;
        check(NormForm::RmsFromOne, of_rows(), None, false)?;
        check(NormForm::Layer, of_rows(), of_rows(), true)?;
        check(NormForm::Layer, of_all(), of_rows(), false)?;
        check(NormForm::Layer, of_rows(), of_all(), false)?;
        if length < 10 {
            check(NormForm::Rms, of_places(), None, false)?;
            check(NormForm::Layer, of_places(), of_places(), true)?;
        }
    }
    // The norms of heads; and one weight that several rows share by a distance of 0.
    let x = place.viewed(&[2, 3, 2, 24], |x| x.narrow(3, 0, 16));
    let weight = Some(place.random(&[2, 1, 1, 16]));
    all.push(Norms { x: &x, weight, bias: None, form: NormForm::Rms, added: false }.check(place)?);
    let x = place.random(&[2, 3, 16]);
    let weight = Some(place.viewed(&[1, 1, 16], |x| x.expand([2, 1, 16], false)));
    all.push(Norms { x: &x, weight, bias: None, form: NormForm::Rms, added: true }.check(place)?);
    Ok(all)
}

fn activated(x: &Tensor, gate: Gate) -> Tensor {
    match gate {
        Gate::Gelu => x.gelu("none"),
        Gate::GeluTanh => x.gelu("tanh"),
        Gate::QuickGelu => (x * 1.702).sigmoid() * x,
        Gate::Relu => x.relu(),
        Gate::Silu => x.silu(),
    }
}

/// Queries and keys that are parts of one tensor, and such whose places stand inside the heads.
fn rotations(
    place: Place,
    [batch, length, dim, dims]: [i64; 4],
    side_by_side: bool,
    each_row: bool,
) -> Result<Vec<Check>> {
    let mut shape = vec![length, 1, dims];
    if each_row {
        shape.insert(0, batch);
    }
    let [cos, sin] = [0, 1].map(|_| place.random(&shape));
    let angles = (cos.there, sin.there);
    let part = |from: i64, heads: i64| {
        place.viewed(&[batch, length, 4, dim], move |x| x.narrow(2, from, heads))
    };
    let inside = |heads: i64| place.viewed(&[batch, heads, length, dim], |x| x.transpose(1, 2));
    let wide = [&cos.cpu, &sin.cpu].map(|table| table.to_kind(Kind::Double));
    let operators = |of: &[Tensor]| -> Vec<Tensor> {
        let turn = |x: &Tensor| {
            let part = x.narrow(-1, 0, dims);
            let other = if side_by_side {
                part.unflatten(-1, [dims / 2, 2]).flip([-1]).flatten(-2, -1)
            } else {
                part.roll([dims / 2], [-1])
            };
            let rest = x.narrow(-1, dims, dim - dims);
            Tensor::cat(&[part * &wide[0] + other * &wide[1], rest], -1)
        };
        of.iter().map(turn).collect()
    };
    let fused = |of: &[Tensor]| {
        let both = turned([&of[0], &of[1]], &angles, side_by_side)?.context("no kernel")?;
        Ok(both.into())
    };
    let name = format!("rope of {batch} × {length} × {dims} of {dim}, pairs: {side_by_side}");
    [[part(0, 3), part(3, 1)], [inside(2), part(1, 2)]]
        .iter()
        .map(|[q, k]| place.check(name.clone(), &[q, k], fused, operators))
        .collect()
}
