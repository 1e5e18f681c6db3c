//! The library that multiplies f32 matrices faster on this machine, measured once in each process.

use std::env;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tch::{no_grad, Device, Kind, Tensor};

use crate::error::{refuse, Result};
use crate::kernels::processor::mkl_is_slow;

/// The choice for those who want no measurement: all machines of a run alike, say.
const VARIABLE: &str = "LN_TUNING_F32_PRODUCTS";
const CONVOLUTION: &str = "convolution";
const MATMUL: &str = "matmul";

/// Two libraries are as fast as each other within this factor. The processor's name then decides, which is the same in
/// each run: results repeat bit for bit.
const CLEARLY: f64 = 1.3;
const ROUNDS: usize = 5;

/// True if oneDNN's convolutions are faster than libtorch's products of matrices. Takes some 20 ms, once.
///
/// # Errors
/// `InvalidArgument` for a value of `LN_TUNING_F32_PRODUCTS` that is neither `convolution` nor `matmul`.
pub(super) fn convolution_is_faster() -> Result<bool> {
    static FASTER: OnceLock<bool> = OnceLock::new();
    if let Some(faster) = FASTER.get() {
        return Ok(*faster);
    }
    let faster = chosen(env::var(VARIABLE).ok().as_deref())?;
    Ok(*FASTER.get_or_init(|| faster))
}

fn chosen(wish: Option<&str>) -> Result<bool> {
    match wish {
        Some(CONVOLUTION) => Ok(true),
        Some(MATMUL) => Ok(false),
        Some(other) => refuse!(
            InvalidArgument,
            "{VARIABLE} is '{other}', expected '{CONVOLUTION}' or '{MATMUL}': unset it to let this machine be measured"
        ),
        None if !tch::utils::has_mkldnn() => Ok(false),
        None => no_grad(|| Ok(judged(mkl_is_slow(), measured()?))),
    }
}

/// From the guess by the processor's name, and from how many times faster the convolution was.
fn judged(guess: bool, times_faster: f64) -> bool {
    times_faster > if guess { 1. / CLEARLY } else { CLEARLY }
}

/// The factor by which a convolution is faster: the best of several rounds of each, in turn.
fn measured() -> Result<f64> {
    let options = (Kind::Float, Device::Cpu);
    let x = Tensor::f_ones([256, 512], options)?;
    let weight = Tensor::f_ones([512, 512], options)?;
    let pixels = x.f_view([1, 256, 1, 512])?.f_permute([0, 3, 1, 2])?;
    let windows = weight.f_view([512, 512, 1, 1])?;
    let matmul = || x.f_linear(&weight, None::<Tensor>);
    let convolution = || pixels.f_conv2d(&windows, None::<Tensor>, [1], [0], [1], 1);
    let (mut best, mut other) = (Duration::MAX, Duration::MAX);
    // The first of each makes plans and starts threads.
    for round in 0..=ROUNDS {
        let start = Instant::now();
        drop(convolution()?);
        let middle = Instant::now();
        drop(matmul()?);
        if round > 0 {
            best = best.min(middle - start);
            other = other.min(middle.elapsed());
        }
    }
    Ok(other.as_secs_f64() / best.as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_stands_until_it_is_clearly_wrong() {
        for (guess, times_faster, expected) in [
            (true, 1.8, true),
            (true, 1., true),
            (true, 0.8, true),
            (true, 0.7, false),
            (false, 0.9, false),
            (false, 1.2, false),
            (false, 1.4, true),
        ] {
            assert_eq!(judged(guess, times_faster), expected, "{guess} {times_faster}");
        }
    }

    #[test]
    fn a_measurement_gives_the_same_choice_each_time_and_can_be_left_out() {
        let first = chosen(None).unwrap();
        assert_eq!([(); 3].map(|()| chosen(None).unwrap()), [first; 3]);
        assert!(chosen(Some(CONVOLUTION)).unwrap() && !chosen(Some(MATMUL)).unwrap());
        let message = chosen(Some("mkl")).unwrap_err().to_string();
        assert!(message.contains("'mkl'") && message.contains("'convolution' or 'matmul'"));
    }
}
