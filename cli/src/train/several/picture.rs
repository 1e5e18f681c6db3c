//! `curves.svg` of several runs: a line for each.

use std::path::Path;

use anyhow::Result;
use ln_tuning::atomic;

use crate::chart::{panel, picture, Points, STEPS};
use crate::train::metrics::Metrics;

/// Losses that are shown, as multiples of the highest first one.
const MOST: f64 = 1.5;

/// Draws the losses of all runs, those of training and those of evaluation.
pub fn draw<'m>(out: &Path, runs: impl Iterator<Item = (&'m str, &'m Metrics)>) -> Result<()> {
    let runs: Vec<(&str, &Metrics)> = runs.collect();
    let lines = |key: &str| -> Vec<(&str, Points)> {
        runs.iter().map(|(name, metrics)| (*name, metrics.series(key))).collect()
    };
    let (mut training, mut evaluation) = (lines("loss"), lines("eval_loss"));
    // A run that diverges leaves the picture, rather than making all others flat.
    let firsts = training.iter().filter_map(|(_, points)| Some(points.first()?.1));
    let most = MOST * firsts.fold(0., f64::max);
    for (_, points) in training.iter_mut().chain(&mut evaluation) {
        points.retain(|point| point.1 <= most);
    }
    let evaluated = evaluation.iter().any(|(_, points)| !points.is_empty());
    let panels = if evaluated { 2 } else { 1 };
    let svg = picture((960, 480 * panels as u32), (panels, 1), |areas| {
        panel(&areas[0], "loss", &training, &STEPS)?;
        match areas.get(1) {
            Some(area) => panel(area, "loss of evaluation", &evaluation, &STEPS),
            None => Ok(()),
        }
    })?;
    Ok(atomic::write(&[(out.join("curves.svg"), svg)])?)
}
