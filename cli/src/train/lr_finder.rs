//! A learning-rate range test: a few steps at rates that grow (Smith, arXiv 1506.01186), a picture, a suggestion.

use std::fmt::Write;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::{atomic, DynamicLossScale, LnTuningModel, LoadOptions, Optimizer, DEFAULT_ADAPTER};

use super::batches::Plan;
use super::by_place::ByPlace;
use super::interrupt;
use super::prefetch::Batches;
use super::ranks::Ranks;
use super::settings::Settings;
use super::task::Task;
use super::update::update;
use crate::chart::{panel, picture, Axis, Points};
use crate::progress;

/// Steps, at rates from the lowest to the highest, each the same multiple of the one before.
const STEPS: usize = 60;
const LOWEST: f64 = 1e-5;
const HIGHEST: f64 = 1.;
/// The weight of the past in the smoothed loss.
const PAST: f64 = 0.8;
/// The loss has diverged where, smoothed, it is this many times the lowest, and above the first.
const DIVERGED: f64 = 1.5;
/// A suggestion rests on so many steps.
const FEWEST: usize = 10;
/// The minimum's rate is too high to go on with: by then the loss is about to rise.
const SAFETY: f64 = 10.;

const PICTURE: &str = "lr_finder.svg";
const NUMBERS: &str = "lr_finder.csv";

#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    lr: f64,
    loss: f64,
    smoothed: f64,
}

/// The result of the steps.
#[derive(Debug, PartialEq)]
struct Found {
    points: Vec<Point>,
    /// The rate at which the loss stopped being one.
    diverged: Option<f64>,
    skipped: u64,
}

/// Runs the test on the first batches, prints what it found, and writes a picture and the numbers to `out`. Weights,
/// gradients and the order of the data are then as before; random numbers follow from the seed and the step.
pub fn find<T: Task>(
    task: &T,
    tuned: &mut LnTuningModel,
    settings: &Settings,
    plan: &Plan,
    ranks: &Ranks,
) -> Result<()> {
    let before = tuned.state_dict(DEFAULT_ADAPTER)?;
    let mut optimizer = settings.optimizer(tuned)?;
    let (lr, out) = (settings.lr(), &settings.out);
    ensure!(lr > 0., "'optimizer.lr' is {lr}, and the rates of the test are multiples of it");
    // Before the work, not behind it.
    let made = if ranks.is_first() { std::fs::create_dir_all(out) } else { Ok(()) };
    ranks.agree(made.with_context(|| format!("cannot make '{}'", out.display())))?;
    ranks.join(&mut optimizer)?;
    let found = ranks.stepping(|| steps(task, &mut optimizer, settings, plan, ranks));
    // Whatever happened.
    optimizer.zero_grad()?;
    tuned.load_state_dict(DEFAULT_ADAPTER, &before, &LoadOptions::default())?;
    let found = found?;
    let told = if ranks.is_first() { tell(&found, settings) } else { Ok(()) };
    ranks.agree(told)
}

fn tell(found: &Found, settings: &Settings) -> Result<()> {
    write(&settings.out, found)?;
    print!("{}", found.table());
    println!("{}", found.advice(&settings.optimizer.lr)?);
    for name in [PICTURE, NUMBERS] {
        println!("{}", settings.out.join(name).display());
    }
    Ok(())
}

fn steps<T: Task>(
    task: &T,
    optimizer: &mut Optimizer,
    settings: &Settings,
    plan: &Plan,
    ranks: &Ranks,
) -> Result<Found> {
    let _steps = interrupt::Steps::begin();
    let lr = settings.lr();
    if settings.scales_dynamically() {
        optimizer.set_dynamic_loss_scale(DynamicLossScale::default())?;
    }
    let recompute = settings.recompute()?;
    let bar = progress::counted("trying learning rates", STEPS as u64)?;
    let mut found = Found { points: Vec::new(), diverged: None, skipped: 0 };
    let mut epoch = 0;
    let mut batches = Batches::new(task, settings, plan.steps(0, 0), STEPS);
    for step in 0..STEPS {
        let (_, group) = match batches.next() {
            Some(next) => next?,
            None => {
                epoch += 1;
                batches = Batches::new(task, settings, plan.steps(epoch, 0), STEPS);
                batches.next().context("there is nothing to train on")??
            }
        };
        let rate = LOWEST * (HIGHEST / LOWEST).powf(step as f64 / (STEPS - 1) as f64);
        let at = (step as u64, rate / lr);
        let recompute = recompute.as_ref();
        let [loss, ..] = update(task, &group, settings, recompute, optimizer, ranks, at)?;
        bar.inc(1);
        let asked = f64::from(u8::from(interrupt::asked()));
        let mut all_asked = [asked];
        ranks.sum(&mut all_asked)?;
        if all_asked[0] > 0. {
            bail!("stopped by a signal after {} of {STEPS} steps; weights are as before", step + 1);
        }
        if !found.add(rate, loss.f_double_value(&[])?) {
            break;
        }
    }
    bar.finish_and_clear();
    found.skipped = u64::try_from(optimizer.skipped_steps()?.f_int64_value(&[])?)?;
    Ok(found)
}

impl Found {
    /// Adds the loss before an update with a rate; false if it is the last.
    fn add(&mut self, lr: f64, loss: f64) -> bool {
        let past = self.points.last().map_or(loss, |last| last.smoothed);
        let smoothed = PAST * past + (1. - PAST) * loss;
        let lowest = self.lowest().map_or(smoothed, |point| point.smoothed);
        let first = self.points.first().map_or(loss, |first| first.loss);
        if !loss.is_finite() || smoothed > DIVERGED * lowest && smoothed > first {
            self.diverged = Some(lr);
            return false;
        }
        self.points.push(Point { lr, loss, smoothed });
        true
    }

    fn lowest(&self) -> Option<&Point> {
        self.points.iter().min_by(|a, b| a.smoothed.total_cmp(&b.smoothed))
    }

    /// The rate at which the smoothed loss falls the fastest, over the logarithm of the rate.
    fn steepest(&self) -> Option<f64> {
        let falls =
            self.points.windows(3).map(|near| (near[0].smoothed - near[2].smoothed, near[1].lr));
        Some(falls.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|fall| fall.0 > 0.)?.1)
    }

    /// About fifteen of the steps.
    fn table(&self) -> String {
        let mut text = format!("{:>10} {:>10} {:>10}\n", "rate", "loss", "smoothed");
        let last = self.points.len().saturating_sub(1);
        let shown = |at: &usize| at.is_multiple_of(4) || *at == last;
        for at in (0..self.points.len()).filter(shown) {
            let Point { lr, loss, smoothed } = self.points[at];
            let _ = writeln!(text, "{lr:>10.1e} {loss:>10.4} {smoothed:>10.4}");
        }
        if let Some(lr) = self.diverged {
            let _ = writeln!(text, "{lr:>10.1e}   diverged");
        }
        if self.skipped > 0 {
            let _ = writeln!(text, "{} steps were skipped by the loss scale", self.skipped);
        }
        text
    }

    /// The rule: a tenth of the rate at the lowest smoothed loss.
    fn suggestion(&self) -> Option<f64> {
        let (lowest, first) = (self.lowest()?, self.points.first()?);
        let falls = lowest.smoothed < first.smoothed && self.points.len() >= FEWEST;
        falls.then_some(lowest.lr / SAFETY)
    }

    fn advice(&self, rates: &ByPlace) -> Result<String> {
        let suggestion = self.suggestion().with_context(|| {
            format!(
                "the loss did not fall at any rate in {} steps: check the data",
                self.points.len()
            )
        })?;
        let lr = rates.default().unwrap_or_default();
        let steepest = self.steepest().map_or("nowhere".into(), |lr| format!("{lr:.1e}"));
        Ok(format!(
            "suggestion: optimizer.lr={}, a tenth of the rate at the lowest smoothed loss ({:.1e}); it falls \
             the fastest at {steepest}. The settings have {lr:e}; nothing was changed",
            rates.times(suggestion / lr),
            suggestion * SAFETY,
        ))
    }
}

fn write(out: &Path, found: &Found) -> Result<()> {
    let axis = Axis {
        least: (LOWEST.log10(), HIGHEST.log10()),
        label: |power| format!("{:.0e}", 10_f64.powf(power)),
    };
    let series = |value: fn(&Point) -> f64| -> Points {
        found.points.iter().map(|point| (point.lr.log10(), value(point))).collect()
    };
    let lines =
        [("loss", series(|point| point.loss)), ("smoothed", series(|point| point.smoothed))];
    let svg = picture((640, 400), (1, 1), |panels| {
        panel(&panels[0], "loss over the learning rate", &lines, &axis)
    })?;
    let mut csv = "lr,loss,smoothed\n".to_owned();
    for Point { lr, loss, smoothed } in &found.points {
        let _ = writeln!(csv, "{lr},{loss},{smoothed}");
    }
    Ok(atomic::write(&[(out.join(PICTURE), svg), (out.join(NUMBERS), csv.into_bytes())])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(losses: impl Fn(f64) -> f64) -> Found {
        let mut found = Found { points: Vec::new(), diverged: None, skipped: 0 };
        for step in 0..STEPS {
            let lr = LOWEST * (HIGHEST / LOWEST).powf(step as f64 / (STEPS - 1) as f64);
            if !found.add(lr, losses(lr)) {
                break;
            }
        }
        found
    }

    fn rates(text: &str) -> ByPlace {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn the_suggestion_is_a_tenth_of_the_rate_at_the_lowest_loss() {
        // Falls until 0.1, and rises then.
        let valley =
            found(
                |lr| {
                    if lr < 0.1 {
                        3. - 0.5 * (lr / LOWEST).log10()
                    } else {
                        1. + 40. * (lr - 0.1)
                    }
                },
            );
        let suggestion = valley.suggestion().unwrap();
        assert!((0.008..0.025).contains(&suggestion), "{suggestion}");
        assert!(valley.diverged.is_some() && valley.points.len() < STEPS, "{valley:?}");
        assert!(valley
            .advice(&rates("0.005"))
            .unwrap()
            .starts_with("suggestion: optimizer.lr=1e-2"));
        // Rates of places stay in proportion, as they were in the test.
        let advice = valley.advice(&rates("{default: 0.1, pre: 0.2}")).unwrap();
        assert!(advice.contains("optimizer.lr={default: 1e-2, pre: 2e-2}, "), "{advice}");
    }

    #[test]
    fn a_loss_that_is_no_number_or_never_falls_ends_the_test_or_the_advice() {
        let broken = found(|lr| if lr < 1e-3 { 2. - lr * 100. } else { f64::NAN });
        assert!(broken.diverged.is_some_and(|lr| (1e-3..2e-3).contains(&lr)));
        assert!(broken.points.iter().all(|point| point.smoothed.is_finite()));
        assert!(broken.suggestion().is_some_and(|lr| lr < 1e-4));
        for (losses, word) in
            [((|_| f64::INFINITY) as fn(f64) -> f64, "in 0 steps"), (|lr| 1. + lr, "did not fall")]
        {
            let error = found(losses).advice(&rates("0.001")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        // A loss near 0 may double without harm.
        assert_eq!(
            found(|lr| if lr < 1e-2 { 2. } else { 1e-3 + 1e-2 * (lr - 0.01) }).diverged,
            None
        );
    }
}
