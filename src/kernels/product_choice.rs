//! The fastest way to products of f32 matrices on this machine, measured once.

use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::kernels::choice::Choice;
#[cfg(feature = "kernels")]
use crate::kernels::linear_calls::{blocks, has_blocks};
use crate::kernels::processor::mkl_is_slow;
use crate::kernels::way::Way;

const WAYS: [(&str, Way); 3] =
    [("matmul", Way::Libtorch), ("convolution", Way::Convolution), ("blocks", Way::Blocks)];

/// The fastest way to products of f32 matrices. Takes some 30 ms on a machine where no process has measured it, with so
/// many threads ([`kept`](super::kept)).
///
/// # Errors
/// `InvalidArgument` for a value of `LN_TUNING_F32_PRODUCTS` that is no way, or one that this machine does not have.
pub(super) fn fastest() -> Result<Way> {
    static FASTEST: OnceLock<Way> = OnceLock::new();
    match FASTEST.get() {
        Some(fastest) => Ok(*fastest),
        None => choice().once(&FASTEST, products),
    }
}

/// The ways that this machine has.
fn ways() -> Vec<(&'static str, Way)> {
    let ways = WAYS.into_iter().filter(|(_, way)| match way {
        Way::Libtorch => true,
        Way::Convolution => tch::utils::has_mkldnn(),
        #[cfg(feature = "kernels")]
        Way::Blocks => has_blocks(),
        #[cfg(not(feature = "kernels"))]
        Way::Blocks => false,
    });
    ways.collect()
}

fn choice() -> Choice<'static, Way> {
    let ways = ways();
    // The last way is the one for processors that MKL was not written for.
    let guess = if mkl_is_slow() { ways.len() - 1 } else { 0 };
    Choice { variable: "LN_TUNING_F32_PRODUCTS", kept: "f32-products", ways, guess }
}

/// A product each way.
fn products() -> Result<impl FnMut(Way) -> Result<Tensor>> {
    let options = (Kind::Float, Device::Cpu);
    let x = Tensor::f_ones([256, 512], options)?;
    let weight = Tensor::f_ones([512, 512], options)?;
    let pixels = x.f_view([1, 256, 1, 512])?.f_permute([0, 3, 1, 2])?;
    let windows = weight.f_view([512, 512, 1, 1])?;
    Ok(move |way: Way| match way {
        Way::Libtorch => Ok(x.f_linear(&weight, None::<Tensor>)?),
        Way::Convolution => Ok(pixels.f_conv2d(&windows, None::<Tensor>, [1], [0], [1], 1)?),
        #[cfg(feature = "kernels")]
        Way::Blocks => Ok(blocks(&x, &weight, None, false)?),
        #[cfg(not(feature = "kernels"))]
        Way::Blocks => Ok(x.f_linear(&weight, None::<Tensor>)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wish: Option<&str>) -> Result<Way> {
        choice().by(wish, products)
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
