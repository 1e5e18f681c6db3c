//! The fastest way to products of f32 matrices on this machine, measured once.

use std::env;
use std::sync::OnceLock;
use std::time::Instant;

use tch::{no_grad, Device, Kind, Tensor};

use crate::error::{refuse, Result};
use crate::kernels::kept;
#[cfg(feature = "kernels")]
use crate::kernels::linear_calls::{blocks, has_blocks};
use crate::kernels::processor::mkl_is_slow;
use crate::kernels::way::Way;

/// The choice for those who want no measurement: all machines of a run alike, say.
const VARIABLE: &str = "LN_TUNING_F32_PRODUCTS";
const WAYS: [(&str, Way); 3] =
    [("matmul", Way::Libtorch), ("convolution", Way::Convolution), ("blocks", Way::Blocks)];

/// The choice's name in the cache folder.
const KEPT: &str = "f32-products";

/// Two ways are as fast as each other within this factor. The processor's name then decides, which is the same in each
/// run: results repeat bit for bit.
const CLEARLY: f64 = 1.3;
const ROUNDS: usize = 5;

/// The fastest way to products of f32 matrices. Takes some 30 ms on a machine where no process has measured it, with so
/// many threads ([`kept`]).
///
/// # Errors
/// `InvalidArgument` for a value of `LN_TUNING_F32_PRODUCTS` that is no way, or one that this machine does not have.
pub(super) fn fastest() -> Result<Way> {
    static FASTEST: OnceLock<Way> = OnceLock::new();
    if let Some(fastest) = FASTEST.get() {
        return Ok(*fastest);
    }
    let fastest = chosen(env::var(VARIABLE).ok().as_deref())?;
    Ok(*FASTEST.get_or_init(|| fastest))
}

/// The ways that this machine has.
fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    WAYS.into_iter().filter(|(_, way)| match way {
        Way::Libtorch => true,
        Way::Convolution => tch::utils::has_mkldnn(),
        #[cfg(feature = "kernels")]
        Way::Blocks => has_blocks(),
        #[cfg(not(feature = "kernels"))]
        Way::Blocks => false,
    })
}

fn chosen(wish: Option<&str>) -> Result<Way> {
    let ways: Vec<_> = ways().collect();
    if let Some(wish) = wish {
        return match ways.iter().find(|(name, _)| *name == wish) {
            Some((_, way)) => Ok(*way),
            None => {
                let names: Vec<_> = ways.iter().map(|(name, _)| format!("'{name}'")).collect();
                refuse!(
                    InvalidArgument,
                    "{VARIABLE} is '{wish}', expected {} on this machine: unset it to let the ways be measured",
                    names.join(" or ")
                )
            }
        };
    }
    if let [(_, only)] = ways[..] {
        return Ok(only);
    }
    // The last way is the one for processors that MKL was not written for.
    let guess = if mkl_is_slow() { ways.len() - 1 } else { 0 };
    let measure = || {
        no_grad(|| {
            let all: Vec<Way> = ways.iter().map(|(_, way)| *way).collect();
            Ok(judged(guess, &measured(&all)?))
        })
    };
    match kept::folder().zip(kept::machine()) {
        Some((folder, machine)) => kept::kept_or((&folder, &machine), KEPT, &ways, measure),
        None => Ok(ways[measure()?].1),
    }
}

/// The place of the fastest, by the seconds of each: that of the guess, unless another is clearly faster.
fn judged(guess: usize, seconds: &[f64]) -> usize {
    let fastest = (0..seconds.len()).min_by(|a, b| seconds[*a].total_cmp(&seconds[*b]));
    fastest.filter(|fastest| seconds[*fastest] * CLEARLY < seconds[guess]).unwrap_or(guess)
}

/// The seconds that each way takes: the best of several rounds of all.
fn measured(ways: &[Way]) -> Result<Vec<f64>> {
    let options = (Kind::Float, Device::Cpu);
    let x = Tensor::f_ones([256, 512], options)?;
    let weight = Tensor::f_ones([512, 512], options)?;
    let pixels = x.f_view([1, 256, 1, 512])?.f_permute([0, 3, 1, 2])?;
    let windows = weight.f_view([512, 512, 1, 1])?;
    let compute = |way: Way| match way {
        Way::Libtorch => x.f_linear(&weight, None::<Tensor>),
        Way::Convolution => pixels.f_conv2d(&windows, None::<Tensor>, [1], [0], [1], 1),
        #[cfg(feature = "kernels")]
        Way::Blocks => blocks(&x, &weight, None, false),
        #[cfg(not(feature = "kernels"))]
        Way::Blocks => x.f_linear(&weight, None::<Tensor>),
    };
    let mut best = vec![f64::INFINITY; ways.len()];
    // The first of each makes plans and starts threads.
    for round in 0..=ROUNDS {
        for (best, way) in best.iter_mut().zip(ways) {
            let start = Instant::now();
            drop(compute(*way)?);
            if round > 0 {
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
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
    fn a_measurement_gives_the_same_choice_each_time_and_can_be_left_out() {
        let first = chosen(None).unwrap();
        assert_eq!([(); 3].map(|()| chosen(None).unwrap()), [first; 3]);
        for (name, way) in ways() {
            assert_eq!(chosen(Some(name)).unwrap(), way);
        }
        let message = chosen(Some("mkl")).unwrap_err().to_string();
        assert!(message.contains("'mkl'") && message.contains("'matmul' or 'convolution'"));
    }
}
