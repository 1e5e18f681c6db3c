//! Numbers in operations of tensors, with an error where libtorch gives one.
//!
//! Those of tch panic where memory is not enough: they free the number first, which finds the error that they have not
//! read yet. Operations in place take no memory, so that tch's can stay in use.
#![allow(unsafe_code)]
// Models use more of them than the rest.
#![cfg_attr(not(feature = "models"), allow(dead_code))]

use std::ffi::{c_int, c_void, CStr};

use tch::{Device, Kind, Scalar, TchError, Tensor};
use torch_sys::c_generated as calls;
use torch_sys::{C_scalar, C_tensor};

extern "C" {
    fn free(memory: *mut c_void);
}

/// A number, which libtorch keeps as a whole one or as one in f64.
pub(crate) struct Number(*mut C_scalar);

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        // SAFETY: makes a small object, and never fails.
        Number(unsafe { torch_sys::ats_float(number) })
    }
}

impl From<i64> for Number {
    fn from(number: i64) -> Self {
        // SAFETY: as above.
        Number(unsafe { torch_sys::ats_int(number) })
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        // SAFETY: made above, and freed once.
        unsafe { torch_sys::ats_free(self.0) }
    }
}

/// The tensor that a call of libtorch makes, or its error.
fn made(call: impl FnOnce(*mut *mut C_tensor)) -> Result<Tensor, TchError> {
    let mut tensor = std::ptr::null_mut();
    call(&mut tensor);
    // SAFETY: the message, if there is one, ends with a zero and is ours to free; without one, the call has made the
    // tensor, which is ours as well.
    unsafe {
        let message = torch_sys::get_and_reset_last_err();
        if message.is_null() {
            return Ok(Tensor::from_ptr(tensor));
        }
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        free(message.cast());
        Err(TchError::Torch(text))
    }
}

/// A tensor that libtorch is given to read.
pub(super) fn read(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// Methods of tensors that take numbers.
pub(crate) trait WithNumber {
    fn f_mul_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_div_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_add_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_sub_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_pow_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_eq_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_ne_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_lt_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_gt_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_ge_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_at_least(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;
    fn f_at_most(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;

    /// The bits that are set in both.
    fn f_and_number(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;

    /// The Euclidean norms of the last dimension, which is 1 then.
    fn f_lengths(&self) -> Result<Tensor, TchError>;

    /// With this number where `mask` is true.
    fn f_fill_where(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError>;

    /// Bounded by these numbers.
    fn f_bound(&self, least: f64, most: f64) -> Result<Tensor, TchError>;

    /// `beta * self + alpha * x @ y`, in batches.
    fn f_scaled_product(
        &self,
        x: &Tensor,
        y: &Tensor,
        beta: f64,
        alpha: f64,
    ) -> Result<Tensor, TchError>;
}

/// A call with one number.
macro_rules! with_number {
    ($name:ident, $call:ident) => {
        fn $name(&self, number: impl Into<Number>) -> Result<Tensor, TchError> {
            let number = number.into();
            // SAFETY: libtorch reads the tensor and the number, which live longer than the call.
            made(|out| unsafe { calls::$call(out, read(self), number.0) })
        }
    };
}

impl WithNumber for Tensor {
    with_number!(f_mul_number, atg_mul_scalar);
    with_number!(f_div_number, atg_div_scalar);
    with_number!(f_add_number, atg_add_scalar);
    with_number!(f_sub_number, atg_sub_scalar);
    with_number!(f_pow_number, atg_pow_tensor_scalar);
    with_number!(f_eq_number, atg_eq);
    with_number!(f_ne_number, atg_ne);
    with_number!(f_lt_number, atg_lt);
    with_number!(f_gt_number, atg_gt);
    with_number!(f_ge_number, atg_ge);
    with_number!(f_at_least, atg_clamp_min);
    with_number!(f_at_most, atg_clamp_max);
    with_number!(f_and_number, atg_bitwise_and);

    fn f_lengths(&self) -> Result<Tensor, TchError> {
        let two = Number::from(2_i64);
        // SAFETY: as above; the one dimension is read during the call.
        made(|out| unsafe {
            calls::atg_norm_scalaropt_dim(out, read(self), two.0, [-1_i64].as_ptr(), 1, 1)
        })
    }

    fn f_fill_where(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError> {
        let number = number.into();
        // SAFETY: as above.
        made(|out| unsafe { calls::atg_masked_fill(out, read(self), read(mask), number.0) })
    }

    fn f_bound(&self, least: f64, most: f64) -> Result<Tensor, TchError> {
        let (least, most) = (Number::from(least), Number::from(most));
        // SAFETY: as above.
        made(|out| unsafe { calls::atg_clamp(out, read(self), least.0, most.0) })
    }

    fn f_scaled_product(
        &self,
        x: &Tensor,
        y: &Tensor,
        beta: f64,
        alpha: f64,
    ) -> Result<Tensor, TchError> {
        let (beta, alpha) = (Number::from(beta), Number::from(alpha));
        // SAFETY: as above.
        made(|out| unsafe {
            calls::atg_baddbmm(out, read(self), read(x), read(y), beta.0, alpha.0)
        })
    }
}

/// The number to the power of each element.
pub(crate) fn pow(number: impl Into<Number>, powers: &Tensor) -> Result<Tensor, TchError> {
    let number = number.into();
    // SAFETY: as above.
    made(|out| unsafe { calls::atg_pow_scalar(out, number.0, read(powers)) })
}

/// A tensor filled with a number.
pub(crate) fn full(
    shape: impl AsRef<[i64]>,
    number: impl Into<Scalar>,
    options: (Kind, Device),
) -> Result<Tensor, TchError> {
    Tensor::f_empty(shape.as_ref(), options)?.f_fill_(number)
}

/// As tch numbers kinds and devices for libtorch.
const INT64: c_int = 4;
const FLOAT: c_int = 6;

fn number_of(device: Device) -> c_int {
    match device {
        Device::Cpu => -1,
        Device::Cuda(index) => index as c_int,
        Device::Mps => -2,
        Device::Vulkan => -3,
    }
}

/// The numbers from `start` to below `end`, so far apart, in f32.
pub(crate) fn steps(start: f64, end: f64, apart: f64, device: Device) -> Result<Tensor, TchError> {
    let device = number_of(device);
    let (start, end, apart) = (Number::from(start), Number::from(end), Number::from(apart));
    // SAFETY: libtorch reads the numbers, which live longer than the call.
    made(|out| unsafe { calls::atg_arange_start_step(out, start.0, end.0, apart.0, FLOAT, device) })
}

/// The whole numbers from `start` to below `end`.
pub(crate) fn arange(start: i64, end: i64, device: Device) -> Result<Tensor, TchError> {
    let device = number_of(device);
    let (start, end) = (Number::from(start), Number::from(end));
    // SAFETY: libtorch reads the numbers, which live longer than the call.
    made(|out| unsafe { calls::atg_arange_start(out, start.0, end.0, INT64, device) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn numbers_give_what_those_of_tch_give_in_every_kind() {
        let ramp = Tensor::arange(7, CPU) - 3.;
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double, Kind::Int64] {
            let x = ramp.to_kind(kind);
            let mask = x.gt(0.);
            let pairs = [
                (x.f_mul_number(0.3).unwrap(), x.f_mul_scalar(0.3).unwrap()),
                (x.f_div_number(7.).unwrap(), x.f_div_scalar(7.).unwrap()),
                (x.f_add_number(2).unwrap(), x.f_add_scalar(2).unwrap()),
                (x.f_sub_number(0.1).unwrap(), x.f_sub_scalar(0.1).unwrap()),
                (x.f_fill_where(&mask, 9).unwrap(), x.masked_fill(&mask, 9)),
                (x.f_bound(-1., 2.).unwrap(), x.clamp(-1., 2.)),
                (x.f_at_least(1).unwrap(), x.clamp_min(1)),
                (x.f_at_most(1).unwrap(), x.clamp_max(1)),
                (x.f_pow_number(2).unwrap(), x.pow_tensor_scalar(2)),
                (pow(2., &x).unwrap(), Tensor::pow_scalar(2., &x)),
                (x.f_eq_number(1).unwrap(), x.eq(1)),
                (x.f_ne_number(1).unwrap(), x.ne(1)),
                (x.f_lt_number(1).unwrap(), x.lt(1)),
                (x.f_gt_number(1).unwrap(), x.gt(1)),
                (x.f_ge_number(1).unwrap(), x.ge(1)),
                (
                    full([3], 2, (kind, Device::Cpu)).unwrap(),
                    Tensor::full([3], 2, (kind, Device::Cpu)),
                ),
                (arange(-3, 4, Device::Cpu).unwrap(), ramp.to_kind(Kind::Int64)),
            ];
            for (own, theirs) in pairs {
                assert_eq!((own.kind(), &own), (theirs.kind(), &theirs));
            }
        }
    }

    #[test]
    fn memory_that_is_not_enough_is_an_error_and_no_panic() {
        let more = Tensor::zeros([1], CPU).expand([1_i64 << 50], true);
        let mask = Tensor::zeros([1], (Kind::Bool, Device::Cpu)).expand([1_i64 << 50], true);
        let results = [
            more.f_mul_number(2.),
            more.f_div_number(2.),
            more.f_add_number(2),
            more.f_sub_number(2),
            more.f_fill_where(&mask, 0.),
            more.f_bound(0., 1.),
            more.f_at_least(1),
            more.f_at_most(1),
            more.f_pow_number(0.5),
            pow(0.5, &more),
            more.f_eq_number(1),
            more.f_ne_number(1),
            more.f_lt_number(1),
            more.f_gt_number(1),
            more.f_ge_number(1),
            full([1 << 50], 1, CPU),
            arange(1, 1 << 50, Device::Cpu),
        ];
        for result in results {
            assert!(result.unwrap_err().to_string().contains("can't allocate memory"));
        }
        // The error is not found by the next operation.
        assert_eq!(
            Tensor::ones([2], CPU).f_mul_number(2.).unwrap(),
            Tensor::from_slice(&[2_f32, 2.])
        );
    }
}
