//! Evaluation: each rank sees some of the batches, and all ranks have the scores of one process.

use anyhow::Result;
use tch::no_grad;

use super::batches;
use super::prefetch::Prefetch;
use super::ranks::Ranks;
use super::settings::Settings;
use super::task::{Scores, Task};
use crate::progress;

/// The scores of the first `count` rows to evaluate on.
pub fn evaluate<T: Task>(
    task: &T,
    count: usize,
    settings: &Settings,
    ranks: &Ranks,
) -> Result<Scores> {
    let jobs = batches::evaluation(count, settings.batch_size);
    let all = jobs.len();
    let own: Vec<_> = jobs.into_iter().skip(ranks.rank()).step_by(ranks.size()).collect();
    let bar = progress::counted("evaluating", own.len() as u64)?;
    let batches = Prefetch::new(&task.loader(), own, settings.workers);
    let mut batches = batches.inspect(|_| bar.inc(1));
    let figures = no_grad(|| task.evaluate(&mut batches))?;
    bar.finish_and_clear();
    task.scores(&gathered(figures, all, ranks)?)
}

/// The figures of all batches, in their order, from those of each rank's own.
fn gathered(own: Vec<Vec<f64>>, all: usize, ranks: &Ranks) -> Result<Vec<Vec<f64>>> {
    if ranks.are_one() {
        return Ok(own);
    }
    // Zeros of the others change no number.
    let places = || (ranks.rank()..all).step_by(ranks.size());
    let mut counts = vec![0.; all];
    places().zip(&own).for_each(|(at, figures)| counts[at] = figures.len() as f64);
    ranks.sum(&mut counts)?;
    let mut figures: Vec<Vec<f64>> =
        counts.into_iter().map(|count| vec![0.; count as usize]).collect();
    places().zip(own).for_each(|(at, own)| figures[at] = own);
    let mut flat = figures.concat();
    ranks.sum(&mut flat)?;
    let mut rest = flat.as_slice();
    for figures in &mut figures {
        let (first, more) = rest.split_at(figures.len());
        figures.copy_from_slice(first);
        rest = more;
    }
    Ok(figures)
}
