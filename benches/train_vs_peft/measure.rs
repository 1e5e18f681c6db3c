//! The steps of a row: on the CPU all contenders in turn, on a GPU one after the other, each with the device to itself.

use std::time::Instant;

use anyhow::Result;

use crate::contender::Contender;
use crate::options::Options;
use crate::task::Ready;
use crate::who::Who;
use crate::work::Work;

/// Steps that do not count: compilation and the capture of a graph are among them.
pub const WARM_UP: usize = 3;

/// A row ends early after so many steps that count.
const LEAST: usize = 3;

/// The steps of one contender in a row.
pub struct Measured {
    pub ready: Ready,
    /// Milliseconds and losses of the steps that count.
    pub times: Vec<f64>,
    pub losses: Vec<f64>,
    /// Milliseconds of processors that they took.
    pub work: Vec<f64>,
    /// Milliseconds from the start of the process to the end of its first step.
    pub first: f64,
    pub megabytes: f64,
    /// Tokens of the steps that count.
    pub tokens: i64,
}

/// A contender that fails has its error, and the others go on. `done` hears of each as soon as it has ended.
pub fn measure(
    work: &Work,
    who: &[Who],
    options: &Options,
    mut done: impl FnMut(Who, &Result<Measured>) -> Result<()>,
) -> Result<Vec<(Who, Result<Measured>)>> {
    let together: Vec<&[Who]> = match work.device {
        "cpu" => vec![who],
        _ => who.chunks(1).collect(),
    };
    let mut all = Vec::new();
    for who in together {
        for (who, result) in in_turn(work, who, options) {
            done(who, &result)?;
            all.push((who, result));
        }
    }
    Ok(all)
}

fn in_turn(work: &Work, who: &[Who], options: &Options) -> Vec<(Who, Result<Measured>)> {
    let started = who.iter().map(|who| (*who, Contender::start(*who, work, options)));
    let mut all: Vec<(Who, Result<Contender>)> = started.collect();
    // Not the time that compilation takes: all are to make as many steps, since a GPU slows down as it gets warm.
    let mut start = Instant::now();
    for pair in 0..WARM_UP + options.pairs {
        if pair == WARM_UP {
            start = Instant::now();
        }
        let enough = pair >= WARM_UP + LEAST.min(options.pairs);
        if enough && start.elapsed().as_secs_f64() > options.seconds {
            break;
        }
        for (_, contender) in &mut all {
            if let Err(error) = contender.as_mut().map_or(Ok(()), Contender::step) {
                *contender = Err(error);
            }
        }
    }
    all.into_iter().map(|(who, result)| (who, result.and_then(|c| finish(c, work)))).collect()
}

fn finish(mut contender: Contender, work: &Work) -> Result<Measured> {
    let megabytes = contender.megabytes(work.device)?;
    let tokens = |step: usize| match work.generates {
        true => 64 * work.batch.rows,
        false => work.batch.rows * work.batch.length_of(step as i64),
    };
    Ok(Measured {
        ready: contender.ready.clone(),
        times: contender.times[WARM_UP..].to_vec(),
        losses: contender.values[WARM_UP..].to_vec(),
        work: contender.work[WARM_UP..].to_vec(),
        first: contender.first,
        megabytes,
        tokens: (WARM_UP..contender.times.len()).map(tokens).sum(),
    })
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
