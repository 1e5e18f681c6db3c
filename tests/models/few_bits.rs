//! Weights in eight and in four bits.

use std::collections::HashMap;

use crate::{common, nets};
use ln_tuning::gguf::{BlockType, Encoding, Quantised};
use ln_tuning::ErrorKind;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Matrices whose last group is whole, partial, of an odd number; one with zeros in whole groups, one with each bound.
fn matrices() -> Vec<(&'static str, Tensor)> {
    let zeros = nets::noise(&[4, 64], 3);
    let _ = zeros.get(1).fill_(0.);
    let bounds = [
        -0.8480964004993439,
        -0.6106329262256622,
        -0.4599952697753906,
        -0.33967943489551544,
        -0.23460740596055984,
        -0.13791173323988914,
        -0.045525018125772476,
        0.03979014977812767,
        0.1202552504837513,
        0.2035212516784668,
        0.2920137718319893,
        0.3893125355243683,
        0.5016634166240692,
        0.6427869200706482,
        0.8614784181118011,
        1.0_f64,
    ];
    vec![
        ("whole", nets::noise(&[3, 128], 1)),
        ("partial", nets::noise(&[7, 11], 2) * 1e-3),
        ("zeros", zeros),
        ("bounds", Tensor::from_slice(&bounds).to_kind(Kind::Float).view([1, 16])),
        ("tiny", nets::noise(&[2, 64], 4) * 1e-38),
    ]
}

#[test]
fn nf4_is_that_of_bitsandbytes_bit_for_bit() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let matrices = matrices();
    Tensor::write_safetensors(&matrices, dir.path().join("weights.st")).unwrap();
    common::run_python("nf4.py", &[dir.path().to_str().unwrap()]);
    let theirs = Tensor::read_safetensors(dir.path().join("nf4.st")).unwrap();
    let theirs: HashMap<String, Tensor> = theirs.into_iter().collect();
    for (name, matrix) in &matrices {
        let own = Quantised::of(matrix, Encoding::Nf4).unwrap();
        let groups = own.data();
        let absmax = groups.narrow(1, 0, 4).contiguous().view_dtype(Kind::Float).view([-1]);
        assert_eq!(absmax, theirs[&format!("{name}.absmax")], "{name}");
        let expected = &theirs[&format!("{name}.packed")];
        let packed = groups.narrow(1, 4, 32).contiguous().view([-1]);
        let whole = matrix.numel() as i64 / 2;
        assert_eq!(packed.narrow(0, 0, whole), expected.narrow(0, 0, whole), "{name}");
        if matrix.numel() % 2 == 1 {
            let last = |bytes: &Tensor| bytes.int64_value(&[whole]) >> 4;
            assert_eq!(last(&packed), last(expected), "{name}");
        }
        let values = own.dequantise(Kind::Float).unwrap();
        assert_eq!(values, theirs[&format!("{name}.values")], "{name}");
    }
}

#[test]
fn int8_rounds_half_to_even_by_rows_and_keeps_the_largest_value() {
    let row = [127_f32, 0.5, 1.5, 2.5, -0.5, -1.5, -126.4, 0.];
    let matrix = Tensor::from_slice2(&[row, row.map(|x| x * 2.), [0.; 8]]);
    let own = Quantised::of(&matrix, Encoding::Int8).unwrap();
    let expected = [127_f32, 0., 2., 2., 0., -2., -126., 0.];
    let expected = Tensor::from_slice2(&[expected, expected.map(|x| x * 2.), [0.; 8]]);
    assert_eq!(own.dequantise(Kind::Float).unwrap(), expected);
    assert_eq!(own.bytes(), 3 * (8 + 4));
    // A matrix that was quantised once stays as it is.
    for encoding in [Encoding::Int8, Encoding::Nf4] {
        let once = Quantised::of(&nets::noise(&[5, 70], 9), encoding).unwrap();
        let values = once.dequantise(Kind::Float).unwrap();
        let twice = Quantised::of(&values, encoding).unwrap();
        let off = (twice.dequantise(Kind::Float).unwrap() - values).abs().max();
        assert!(off.double_value(&[]) < 1e-6, "{encoding}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_rows_have_the_values_of_the_whole(
        rows in 1_i64..9, columns in 1_i64..150, start in 0_i64..9, count in 0_i64..9, eight: bool,
    ) {
        let encoding = if eight { Encoding::Int8 } else { Encoding::Nf4 };
        let matrix = nets::noise(&[rows, columns], 5);
        let own = Quantised::of(&matrix, encoding).unwrap();
        let (start, count) = (start.min(rows), count.min(rows - start.min(rows)));
        for kind in [Kind::Float, Kind::BFloat16] {
            let whole = own.dequantise(kind).unwrap();
            prop_assert_eq!(own.rows(start, count, kind).unwrap(), whole.narrow(0, start, count));
        }
        let scale = matrix.abs().max().double_value(&[]);
        let off = (own.dequantise(Kind::Float).unwrap() - &matrix).abs().max().double_value(&[]);
        prop_assert!(off <= scale * if eight { 0.5 / 127. + 1e-6 } else { 0.16 }, "{} of {}", off, scale);
    }
}

#[test]
fn what_is_no_matrix_and_bytes_that_are_not_those_of_the_shape_are_refused() {
    let bytes = Tensor::zeros([3, 12], (Kind::Uint8, Device::Cpu));
    let refused = |result: Result<Quantised, ln_tuning::Error>| result.unwrap_err().kind();
    assert!(Quantised::new(&bytes, &[3, 8], Encoding::Int8).is_ok());
    for shape in [&[3, 9][..], &[8], &[-3, 8], &[i64::MAX, 8], &[1, i64::MAX], &[]] {
        assert_eq!(
            refused(Quantised::new(&bytes, shape, Encoding::Int8)),
            ErrorKind::ShapeMismatch
        );
    }
    let none = Tensor::zeros([0], (Kind::Uint8, Device::Cpu));
    for shape in [&[0, i64::MAX][..], &[0, i64::MAX, i64::MAX, 5]] {
        assert_eq!(Quantised::new(&none, shape, Encoding::Int8).unwrap().bytes(), 0);
    }
    let whole = Quantised::new(&bytes, &[3, 8], Encoding::Int8).unwrap();
    for (start, count) in [(-1, 1), (0, -1), (0, 4), (3, 1), (i64::MAX, 1), (1, i64::MAX)] {
        let error = whole.rows(start, count, Kind::Float).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let cast = bytes.to_kind(Kind::Float);
    assert_eq!(refused(Quantised::new(&cast, &[3, 8], Encoding::Int8)), ErrorKind::KindMismatch);
    let matrix = Tensor::zeros([2, 64], CPU);
    for encoding in [Encoding::Int8, Encoding::Nf4] {
        assert_eq!(refused(Quantised::of(&matrix.get(0), encoding)), ErrorKind::ShapeMismatch);
        for bad in [f64::NAN, f64::INFINITY] {
            let bad = &matrix + bad;
            assert_eq!(refused(Quantised::of(&bad, encoding)), ErrorKind::NonFinite);
        }
    }
    let blocks = Quantised::of(&matrix, Encoding::Block(BlockType::Q4_0));
    assert_eq!(refused(blocks), ErrorKind::Unsupported);
}
