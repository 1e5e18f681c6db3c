//! Products with a weight, by the library of libtorch that is fastest on this processor.

#[cfg(feature = "kernels")]
use tch::no_grad;
use tch::{Device, Kind, Tensor};

#[cfg(all(feature = "kernels", feature = "models"))]
use crate::device::grad_mode::is_recorded;
use crate::error::{Error, ErrorKind, Result};
#[cfg(feature = "kernels")]
use crate::kernels::linear_calls::{
    are_on, blocks, blocks_into, few_rows, most_rows, with_graph, Back,
};
use crate::kernels::product_choice::fastest;
use crate::kernels::way::Way;

/// Weights of at most this many elements stay in the cache while they are reordered for oneDNN.
pub(crate) const SMALL_WEIGHT: i64 = 1 << 22;
/// Smaller weights are not worth the reordering.
const LEAST_WEIGHT: i64 = 1 << 16;

/// With fewer rows, blocks are not worth the reordering.
const LEAST_FOR_BLOCKS: i64 = 64;

/// With fewer rows, MKL adds up all terms of a product in one running sum: where a vocabulary is summed over, its
/// rounding is ten times that of several sums, and a hundred times where terms cancel out.
const LEAST_ROWS: i64 = 4;

/// x · weightᵀ + bias, for a weight `[out, in]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    product(x, weight, bias, false)
}

/// x · weight + bias, for a weight `[in, out]`.
pub fn linear_transposed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    product(x, weight, bias, true)
}

/// The value does not depend on what trains: an adapter that is attached changes no bit of it.
fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, transposed: bool) -> Result<Tensor> {
    let count = rows_of(x);
    #[cfg(feature = "kernels")]
    if takes_few_rows(x, weight, count, transposed)? {
        let back = Back { transposed, ..Back::default() };
        let [value] = no_grad(|| few_rows(x, [(weight, bias)]))?;
        return Ok(with_graph(&value, x, weight, bias, back)?);
    }
    match way(count, weight)? {
        #[cfg(feature = "kernels")]
        Way::Blocks if x.f_kind()? == Kind::Float && are_on() => {
            let back = Back { transposed, way: Way::Blocks, ..Back::default() };
            let value = no_grad(|| blocks(x, weight, bias, transposed))?;
            return Ok(with_graph(&value, x, weight, bias, back)?);
        }
        // libtorch's graph of a convolution keeps the input, also where the weight is frozen.
        #[cfg(feature = "kernels")]
        Way::Convolution if are_on() && !weight.requires_grad() => {
            let back = Back { transposed, way: Way::Convolution, ..Back::default() };
            let value = no_grad(|| convolution(x, weight, bias, count, transposed))?;
            return Ok(with_graph(&value, x, weight, bias, back)?);
        }
        Way::Convolution => return convolution(x, weight, bias, count, transposed),
        _ => (),
    }
    if transposed {
        Ok(x.f_linear(&weight.f_tr()?, bias)?)
    } else {
        Ok(x.f_linear(weight, bias)?)
    }
}

/// [`linear`] of several layers, where they are faster together: few rows, and no gradient.
#[cfg(all(feature = "kernels", feature = "models"))]
pub(crate) fn linears<const N: usize>(
    x: &Tensor,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<Option<[Tensor; N]>> {
    let count = rows_of(x);
    for (weight, _) in layers {
        if !takes_few_rows(x, weight, count, false)? {
            return Ok(None);
        }
    }
    let biases = layers.iter().filter_map(|(_, bias)| *bias);
    let given = layers.iter().map(|(weight, _)| *weight).chain(biases).chain([x]);
    for tensor in given {
        if is_recorded(tensor)? {
            return Ok(None);
        }
    }
    Ok(Some(few_rows(x, layers)?))
}

fn rows_of(x: &Tensor) -> i64 {
    x.size().split_last().map_or(0, |(_, outer)| outer.iter().product())
}

/// The product of `count` rows as a convolution of an image, channels last, with windows of one pixel.
fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    count: i64,
    transposed: bool,
) -> Result<Tensor> {
    let mut shape = x.size();
    let from = shape.pop().unwrap_or(1);
    let pixels = x.f_reshape([1, count, 1, from])?.f_permute([0, 3, 1, 2])?;
    let (first, second) = weight.size2()?;
    let windows = weight.f_view([first, second, 1, 1])?;
    let product = if transposed {
        pixels.f_conv_transpose2d(&windows, bias, [1], [0], [0], 1, [1])?
    } else {
        pixels.f_conv2d(&windows, bias, [1], [0], [1], 1)?
    };
    shape.push(product.size4()?.1);
    Ok(product.f_permute([0, 2, 3, 1])?.f_reshape(shape)?)
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

/// True if a product of so few rows only waits for the weight to be read once.
#[cfg(feature = "kernels")]
fn takes_few_rows(x: &Tensor, weight: &Tensor, count: i64, transposed: bool) -> Result<bool> {
    Ok((1..=most_rows()).contains(&count)
        && !transposed
        && weight.device() == Device::Cpu
        && weight.numel() as i64 >= LEAST_WEIGHT
        && matches!(weight.f_kind()?, Kind::Float | Kind::BFloat16)
        && x.f_kind()? == weight.f_kind()?
        && weight.is_contiguous()
        && are_on())
}

/// The fastest way to a product of `rows` rows with this weight. For products of f32 matrices libtorch has MKL, which
/// leaves a part of an AVX-512 processor unused if it is not Intel's, and for convolutions oneDNN, which does so less.
/// With few rows, reordering the weight costs more than it saves.
pub(crate) fn way(rows: i64, weight: &Tensor) -> Result<Way> {
    let elements = weight.numel() as i64;
    if rows < LEAST_FOR_BLOCKS
        || elements < LEAST_WEIGHT
        || weight.device() != Device::Cpu
        || weight.f_kind()? != Kind::Float
        || !weight.is_contiguous()
    {
        return Ok(Way::Libtorch);
    }
    let enough = if elements <= SMALL_WEIGHT { 128 } else { 256 };
    let way = fastest()?;
    Ok(if way == Way::Convolution && rows < enough { Way::Libtorch } else { way })
}

/// Writes x · weightᵀ into `out`, or x · weight if it is transposed, for matrices; false if that is not the way.
pub(crate) fn blocks_are_written(
    x: &Tensor,
    weight: &Tensor,
    transposed: bool,
    out: &mut Tensor,
) -> Result<bool> {
    #[cfg(feature = "kernels")]
    if are_on() && x.f_kind()? == Kind::Float && way(rows_of(x), weight)? == Way::Blocks {
        blocks_into(x, weight, transposed, out)?;
        return Ok(true);
    }
    #[cfg(not(feature = "kernels"))]
    let _ = (x, weight, transposed, out);
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// The gradients of the sum with `upstream`, and the value.
    fn all(y: Tensor, upstream: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
        assert_eq!(y.size(), upstream.size());
        let sum = (&y * upstream).sum(Kind::Float);
        let mut all = Tensor::run_backward(&[sum], inputs, false, false);
        all.push(y.detach());
        all
    }

    fn check(found: &[Tensor], expected: &[Tensor], tolerance: f64) {
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()));
            let [found, expected] = [found, expected].map(|tensor| tensor.to_kind(Kind::Double));
            let off = (found - &expected).abs().max().double_value(&[]);
            assert!(off <= tolerance * expected.abs().max().double_value(&[]), "{off} off");
        }
    }

    /// Values and all gradients equal those of `linear`, whether the weight trains or not.
    #[test]
    fn a_product_as_a_convolution_is_the_same() {
        tch::set_num_threads(1);
        for trains in [true, false] {
            let x = Tensor::randn([2, 256, 256], CPU).set_requires_grad(true);
            let weight = (Tensor::randn([300, 256], CPU) * 0.06).set_requires_grad(trains);
            let turned = weight.detach().tr().contiguous();
            let bias = Tensor::randn([300], CPU).set_requires_grad(true);
            let upstream = Tensor::randn([2, 256, 300], CPU);
            let inputs = [&x, &bias, &weight];
            let inputs = if trains { &inputs[..] } else { &inputs[..2] };
            let expected = all(x.linear(&weight, Some(&bias)), &upstream, inputs);
            let found = all(linear(&x, &weight, Some(&bias)).unwrap(), &upstream, inputs);
            check(&found, &expected, 1e-5);
            let found = linear_transposed(&x, &turned, Some(&bias)).unwrap();
            let found = all(found, &upstream, &inputs[..2]);
            check(&found[..2], &expected[..2], 1e-5);
            check(&found[2..], &expected[expected.len() - 1..], 1e-5);
        }
    }

    #[test]
    #[cfg(feature = "kernels")]
    fn a_product_of_few_rows_is_the_same_in_each_kind_and_size_and_each_row_is_by_itself() {
        tch::set_num_threads(2);
        for kind in [Kind::Float, Kind::BFloat16] {
            for (size, outputs) in [(256, 300), (513, 131), (1031, 64)] {
                let weight = (Tensor::randn([outputs, size], CPU) * 0.06).to_kind(kind);
                let weight = weight.set_requires_grad(true);
                let bias = Tensor::randn([outputs], CPU).to_kind(kind).set_requires_grad(true);
                let rows = Tensor::randn([12, size], CPU).to_kind(kind);
                let single = |row: i64| linear(&rows.narrow(0, row, 1), &weight, Some(&bias));
                for count in 1..=9 {
                    // Not contiguous.
                    let x = rows.narrow(0, 0, count).tr().contiguous().tr().set_requires_grad(true);
                    let upstream = Tensor::randn([count, outputs], CPU).to_kind(kind);
                    for bias in [Some(&bias), None] {
                        let inputs: Vec<&Tensor> = [&x, &weight].into_iter().chain(bias).collect();
                        let found = linear(&x, &weight, bias).unwrap();
                        let found = all(found, &upstream, &inputs);
                        let expected = all(x.linear(&weight, bias), &upstream, &inputs);
                        check(&found, &expected, if kind == Kind::Float { 1e-5 } else { 1e-2 });
                        let value = &found[found.len() - 1];
                        if bias.is_some() && takes_few_rows(&x, &weight, count, false).unwrap() {
                            let last = single(count - 1).unwrap();
                            assert_eq!(value.narrow(0, count - 1, 1), last);
                        }
                    }
                }
            }
        }
    }

    /// Sizes that are no multiples of a block, sums in one piece and in several, rows that are not contiguous.
    #[test]
    #[cfg(feature = "kernels")]
    fn a_product_in_blocks_is_the_same_and_each_row_is_by_itself() {
        if !crate::kernels::linear_calls::has_blocks() {
            return;
        }
        for (rows, size, outputs) in
            [(1, 1, 1), (37, 130, 77), (100, 1024, 32), (13, 2502, 33), (450, 96, 95), (0, 5, 7)]
        {
            let x = Tensor::randn([rows, size + 3], CPU).narrow(1, 2, size);
            let weight = Tensor::randn([outputs, size], CPU) * 0.06;
            let turned = weight.tr().contiguous();
            let bias = Tensor::randn([outputs], CPU);
            let products = |x: &Tensor, threads: i32| {
                tch::set_num_threads(threads);
                let plain = blocks(x, &weight, Some(&bias), false).unwrap();
                let other = blocks(x, &turned, Some(&bias), true).unwrap();
                let mut into = Tensor::zeros([x.size()[0], outputs + 5], CPU).narrow(1, 4, outputs);
                blocks_into(x, &weight, false, &mut into).unwrap();
                [plain, other, into + &bias]
            };
            let [plain, other, into] = products(&x, 1);
            if rows > 0 {
                check(&[plain.shallow_clone()], &[x.linear(&weight, Some(&bias))], 1e-5);
            }
            assert!(other == plain && into == plain, "{rows} {size} {outputs}");
            assert_eq!(products(&x, 3), [plain.shallow_clone(), other, into]);
            if rows > 20 {
                assert_eq!(products(&x.narrow(0, 7, 11), 2)[0], plain.narrow(0, 7, 11));
            }
        }
        // Numbers of a row do not reach others.
        let x = Tensor::ones([40, 64], CPU);
        let _ = x.get(3).fill_(f64::NAN);
        let y = blocks(&x, &Tensor::ones([20, 64], CPU), None, false).unwrap();
        assert_eq!(y.isnan().sum(Kind::Int64).int64_value(&[]), 20);
        let wrong = blocks(&x, &Tensor::ones([20, 63], CPU), None, false).unwrap_err().to_string();
        assert!(wrong.contains("do not fit"), "{wrong}");
    }

    #[test]
    #[cfg(feature = "kernels")]
    fn the_input_of_a_frozen_weight_is_not_kept() {
        tch::set_num_threads(1);
        for rows in [2, 256] {
            let leaf = Tensor::randn([rows, 256], CPU).set_requires_grad(true);
            let weight = Tensor::randn([300, 256], CPU);
            let mut x = &leaf * 1.;
            let y = linear(&x, &weight, None).unwrap();
            // Autograd would refuse to go backward over a tensor that was kept and has changed.
            let _ = x.zero_();
            let found = Tensor::run_backward(&[y.sum(Kind::Float)], &[&leaf], false, false);
            let expected = weight.sum_dim_intlist([0_i64].as_slice(), true, Kind::Float);
            check(&found, &[expected.expand([rows, 256], false)], 1e-4);
        }
    }

    #[test]
    #[cfg(feature = "kernels")]
    fn a_product_has_gradients_of_gradients() {
        tch::set_num_threads(1);
        for rows in [2, 256] {
            let x = Tensor::randn([rows, 256], CPU).set_requires_grad(true);
            let weight = Tensor::randn([300, 256], CPU) * 0.06;
            let twice = |y: Tensor| {
                let first = Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&x], true, true);
                Tensor::run_backward(&[first[0].square().sum(Kind::Float)], &[&x], false, false)
            };
            let expected = twice(x.linear(&weight, None::<Tensor>));
            check(&twice(linear(&x, &weight, None).unwrap()), &expected, 1e-4);
        }
    }
}
