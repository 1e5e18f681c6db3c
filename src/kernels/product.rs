//! Products with a weight, by the library of libtorch that is fastest on this processor.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::kernels::processor::mkl_is_slow;

/// Weights of at most this many elements stay in the cache while they are reordered for oneDNN.
pub(crate) const SMALL_WEIGHT: i64 = 1 << 22;
/// Smaller weights are not worth the reordering.
const LEAST_WEIGHT: i64 = 1 << 16;

/// With fewer rows, MKL adds up all terms of a product in one running sum: where a vocabulary is summed over, its
/// rounding is ten times that of several sums, and a hundred times where terms cancel out.
const LEAST_ROWS: i64 = 4;

/// x · weightᵀ + bias, for a weight `[out, in]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match pixels(x, weight)? {
        None => Ok(x.f_linear(weight, bias)?),
        Some(pixels) => {
            let product = pixels.f_conv2d(&windows(weight)?, bias, [1], [0], [1], 1)?;
            rows(&product, x)
        }
    }
}

/// x · weight + bias, for a weight `[in, out]`.
pub(crate) fn linear_transposed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    match pixels(x, weight)? {
        None => Ok(x.f_linear(&weight.f_tr()?, bias)?),
        Some(pixels) => {
            let weight = windows(weight)?;
            let product = pixels.f_conv_transpose2d(&weight, bias, [1], [0], [0], 1, [1])?;
            rows(&product, x)
        }
    }
}

/// The rows of a long product, on the CPU with zeros below if they are so few that it would be less exact.
pub(crate) fn enough_rows(rows: &Tensor) -> Result<Tensor> {
    let lacking = LEAST_ROWS - rows.size2()?.0;
    if lacking <= 0 || rows.device() != Device::Cpu || rows.f_kind()? != Kind::Float {
        return Ok(rows.shallow_clone());
    }
    Ok(rows.f_constant_pad_nd([0, 0, 0, lacking])?)
}

/// Writes a · b into `out`, which may be f32 where they are bf16 or f16: on CUDA then without rounding to their kind.
pub(crate) fn widened(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    if a.device().is_cuda() {
        match a.f_mm_dtype_out(out, b, out.f_kind()?).map_err(Error::from) {
            // Devices before Ampere refuse it in bf16.
            Err(error) if error.kind() == ErrorKind::Torch => (),
            done => return done.map(drop),
        }
    }
    Ok(out.f_copy_(&a.f_mm(b)?)?)
}

/// The rows of `x` as the pixels of an image, channels last, if their product with `weight` is faster as a convolution.
fn pixels(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let size = x.size();
    let Some((from, outer)) = size.split_last() else { return Ok(None) };
    let count = outer.iter().product();
    if !prefers_convolution(count, weight)? {
        return Ok(None);
    }
    Ok(Some(x.f_reshape([1, count, 1, *from])?.f_permute([0, 3, 1, 2])?))
}

/// The weight as windows of one pixel.
fn windows(weight: &Tensor) -> Result<Tensor> {
    let (first, second) = weight.size2()?;
    Ok(weight.f_view([first, second, 1, 1])?)
}

/// The pixels as rows again, in the shape of `x`.
fn rows(pixels: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = x.size();
    shape.pop();
    shape.push(pixels.size4()?.1);
    Ok(pixels.f_permute([0, 2, 3, 1])?.f_reshape(shape)?)
}

/// True if a product of `rows` rows with this weight is faster as a convolution. libtorch computes products of f32
/// matrices with MKL, which leaves half of an AVX-512 processor unused if it is not Intel's, and convolutions with
/// oneDNN, which does not. With few rows, reordering the weight for oneDNN costs more than it saves.
pub(crate) fn prefers_convolution(rows: i64, weight: &Tensor) -> Result<bool> {
    let elements = weight.numel() as i64;
    let enough = if elements <= SMALL_WEIGHT { 128 } else { 256 };
    Ok(rows >= enough
        && elements >= LEAST_WEIGHT
        && weight.device() == Device::Cpu
        && weight.f_kind()? == Kind::Float
        && weight.is_contiguous()
        && mkl_is_slow())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and all gradients equal those of `linear`.
    #[test]
    fn a_product_as_a_convolution_is_the_same() {
        tch::set_num_threads(1);
        let options = (Kind::Float, Device::Cpu);
        let x = Tensor::randn([2, 256, 256], options).set_requires_grad(true);
        let weight = (Tensor::randn([300, 256], options) * 0.06).set_requires_grad(true);
        let bias = Tensor::randn([300], options).set_requires_grad(true);
        let upstream = Tensor::randn([2, 256, 300], options);
        let all = |y: Tensor| {
            assert_eq!(y.size(), upstream.size());
            let inputs = [&x, &weight, &bias];
            let sum = (&y * &upstream).sum(Kind::Float);
            let mut all = Tensor::run_backward(&[sum], &inputs, false, false);
            all.push(y.detach());
            all
        };
        let expected = all(x.linear(&weight, Some(&bias)));
        for found in [
            all(linear(&x, &weight, Some(&bias)).unwrap()),
            all(linear_transposed(&x, &weight.tr().contiguous(), Some(&bias)).unwrap()),
        ] {
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.size(), expected.size());
                let off = (found - expected).abs().max().double_value(&[]);
                assert!(off <= 1e-5 * expected.abs().max().double_value(&[]), "{off} off");
            }
        }
    }
}
