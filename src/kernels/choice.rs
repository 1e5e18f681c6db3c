//! Choices between ways to the same result: by an environment variable, else measured once on this machine and kept.

use std::env;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tch::no_grad;

use crate::error::{refuse, Result};
use crate::kernels::kept;

/// Two ways are as fast as each other within this factor. The guess then decides, which is the same in each run: results
/// repeat bit for bit.
const CLEARLY: f64 = 1.3;
/// A time that is better than the best is below this part of it.
const BETTER: f64 = 0.95;
/// Rounds that bring nothing better.
const PATIENCE: usize = 4;
const MOST: Duration = Duration::from_millis(200);

/// A choice, before it is made.
pub(super) struct Choice<'a, T> {
    /// The environment variable for those who want no measurement: all machines of a run alike, say.
    pub(super) variable: &'a str,
    /// Its name in the cache folder.
    pub(super) kept: &'a str,
    /// The ways that this machine has, by their names.
    pub(super) ways: Vec<(&'a str, T)>,
    /// The place of the way that stands until it is clearly wrong.
    pub(super) guess: usize,
}

impl<T: Copy> Choice<'_, T> {
    /// The way of this process, which `made` remembers.
    ///
    /// # Errors
    /// `InvalidArgument` if the variable names no way, or one that this machine does not have.
    pub(super) fn once<F, R>(
        &self,
        made: &OnceLock<T>,
        prepare: impl FnOnce() -> Result<F>,
    ) -> Result<T>
    where
        F: FnMut(T) -> Result<R>,
    {
        let way = self.by(env::var(self.variable).ok().as_deref(), prepare)?;
        Ok(*made.get_or_init(|| way))
    }

    /// The way by this value of the variable, if it has one. `prepare` gives what goes a way once, for the measurement.
    pub(super) fn by<F, R>(
        &self,
        wish: Option<&str>,
        prepare: impl FnOnce() -> Result<F>,
    ) -> Result<T>
    where
        F: FnMut(T) -> Result<R>,
    {
        let Choice { variable, kept, ways, guess } = self;
        if let Some(wish) = wish {
            return match ways.iter().find(|(name, _)| *name == wish) {
                Some((_, way)) => Ok(*way),
                None => {
                    let names: Vec<_> = ways.iter().map(|(name, _)| format!("'{name}'")).collect();
                    refuse!(
                        InvalidArgument,
                        "{variable} is '{wish}', expected {} on this machine: unset it to let the ways be measured",
                        names.join(" or ")
                    )
                }
            };
        }
        if let [(_, only)] = ways[..] {
            return Ok(only);
        }
        let all: Vec<T> = ways.iter().map(|(_, way)| *way).collect();
        let measure = || {
            no_grad(|| {
                let mut compute = prepare()?;
                confirmed(*guess, || Ok(judged(*guess, &measured(&all, &mut compute)?)))
            })
        };
        match kept::folder().zip(kept::machine()) {
            Some((folder, machine)) => kept::kept_or((&folder, &machine), kept, ways, measure),
            None => Ok(all[measure()?]),
        }
    }
}

/// The place that `judge` finds: other than the guess only if it does so twice, since a moment in which the machine is
/// busy would be kept for good.
fn confirmed(guess: usize, mut judge: impl FnMut() -> Result<usize>) -> Result<usize> {
    let found = judge()?;
    Ok(if found == guess || judge()? == found { found } else { guess })
}

/// The place of the fastest, by the seconds of each: that of the guess, unless another is clearly faster.
fn judged(guess: usize, seconds: &[f64]) -> usize {
    let fastest = (0..seconds.len()).min_by(|a, b| seconds[*a].total_cmp(&seconds[*b]));
    fastest.filter(|fastest| seconds[*fastest] * CLEARLY < seconds[guess]).unwrap_or(guess)
}

/// The seconds that each way takes: the best of rounds of all, until several in a row bring nothing better. On a busy
/// machine, threads wait for each other in most rounds.
fn measured<T: Copy, R>(ways: &[T], compute: &mut impl FnMut(T) -> Result<R>) -> Result<Vec<f64>> {
    let began = Instant::now();
    let mut best = vec![f64::INFINITY; ways.len()];
    let mut nothing_better = 0;
    // The first of each makes plans and starts threads.
    for round in 0.. {
        nothing_better += 1;
        for (best, way) in best.iter_mut().zip(ways) {
            let start = Instant::now();
            drop(compute(*way)?);
            let seconds = start.elapsed().as_secs_f64();
            if round > 0 {
                if seconds < *best * BETTER {
                    nothing_better = 0;
                }
                *best = best.min(seconds);
            }
        }
        if round > 0 && (nothing_better >= PATIENCE || began.elapsed() > MOST) {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn a_guess_stands_until_it_is_clearly_wrong() {
        for (guess, seconds, expected) in [
            (1, vec![1.8, 1.], 1),
            (1, vec![1., 1.], 1),
            (1, vec![0.8, 1.], 1),
            (1, vec![0.7, 1.], 0),
            (0, vec![0.9, 1.], 0),
            (0, vec![1.2, 1.], 0),
            (0, vec![1.4, 1.], 1),
            (2, vec![1., 0.9, 1.1], 2),
            (2, vec![1., 0.8, 1.1], 1),
            (0, vec![1., 0.7, 0.6], 2),
        ] {
            assert_eq!(judged(guess, &seconds), expected, "{guess} {seconds:?}");
        }
    }

    #[test]
    fn the_first_round_of_each_way_does_not_count() {
        let mut rounds = [0; 2];
        let mut compute = |way: usize| {
            rounds[way] += 1;
            // The first way is slow once, the second always.
            if way == 1 || rounds[way] == 1 {
                sleep(Duration::from_millis(30));
            }
            Ok(())
        };
        let seconds = measured(&[0, 1], &mut compute).unwrap();
        assert!(rounds[0] == rounds[1] && rounds[0] >= 2, "{rounds:?}");
        assert!(seconds[0] < 0.02 && seconds[1] >= 0.03, "{seconds:?}");
    }

    #[test]
    fn a_guess_falls_only_by_two_measurements_that_agree() {
        for (guess, found, expected) in [
            (0, &[0][..], 0),
            (0, &[1, 1], 1),
            (0, &[1, 0], 0),
            (0, &[1, 2], 0),
            (2, &[2], 2),
            (2, &[0, 0], 0),
        ] {
            let mut judgements = found.iter().copied();
            let place = confirmed(guess, || Ok(judgements.next().unwrap())).unwrap();
            assert_eq!((place, judgements.next()), (expected, None), "{guess} {found:?}");
        }
    }

    #[test]
    fn a_wish_or_a_single_way_is_not_measured() {
        let choice = |ways: &[(&'static str, u8)]| Choice {
            variable: "LN_TUNING_WAY",
            kept: "way",
            ways: ways.to_vec(),
            guess: 0,
        };
        let never = || -> Result<fn(u8) -> Result<()>> { unreachable!("a measurement") };
        let both = choice(&[("one", 1), ("other", 2)]);
        assert_eq!(both.by(Some("other"), never).unwrap(), 2);
        assert_eq!(choice(&[("only", 3)]).by(None, never).unwrap(), 3);
        let message = both.by(Some("third"), never).unwrap_err().to_string();
        assert!(
            message.contains("LN_TUNING_WAY is 'third', expected 'one' or 'other'"),
            "{message}"
        );
    }
}
