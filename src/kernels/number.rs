//! Numbers in operations of tensors, with an error where libtorch gives one.
//!
//! Those of tch panic where memory is not enough: they free the number first, which finds the error that they have not
//! read yet. Operations in place take no memory, so that tch's can stay in use.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void, CStr};

use tch::{Device, TchError, Tensor};
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
    // SAFETY: the message, if there is one, ends with a zero and is ours to free; without one, the call has made a
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

macro_rules! with_number {
    ($($name:ident: $call:ident,)*) => {
        /// Methods of tensors that take a number.
        pub(crate) trait WithNumber {
            $(fn $name(&self, number: impl Into<Number>) -> Result<Tensor, TchError>;)*

            /// With this number where `mask` is true.
            #[allow(dead_code)]
            fn f_fill_where(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError>;
        }

        impl WithNumber for Tensor {
            $(fn $name(&self, number: impl Into<Number>) -> Result<Tensor, TchError> {
                let number = number.into();
                // SAFETY: libtorch reads the tensor and the number, which live longer than the call.
                made(|out| unsafe { calls::$call(out, self.as_ptr().cast_mut(), number.0) })
            })*

            fn f_fill_where(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor, TchError> {
                let number = number.into();
                let (tensor, mask) = (self.as_ptr().cast_mut(), mask.as_ptr().cast_mut());
                // SAFETY: as above.
                made(|out| unsafe { calls::atg_masked_fill(out, tensor, mask, number.0) })
            }
        }
    };
}

with_number! {
    f_mul_number: atg_mul_scalar,
    f_div_number: atg_div_scalar,
    f_add_number: atg_add_scalar,
    f_sub_number: atg_sub_scalar,
}

/// The whole numbers from `start` to below `end`.
pub(crate) fn arange(start: i64, end: i64, device: Device) -> Result<Tensor, TchError> {
    // As tch numbers them for libtorch.
    let device = match device {
        Device::Cpu => -1,
        Device::Cuda(index) => index as c_int,
        Device::Mps => -2,
        Device::Vulkan => -3,
    };
    const INT64: c_int = 4;
    let (start, end) = (Number::from(start), Number::from(end));
    // SAFETY: libtorch reads the numbers, which live longer than the call.
    made(|out| unsafe { calls::atg_arange_start(out, start.0, end.0, INT64, device) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

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
