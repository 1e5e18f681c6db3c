//! The fused functions on CUDA (`csrc/gpu`): kernels that NVRTC compiles for the device, found and loaded at the first
//! call. Where that fails, libtorch's operators are used, and standard error has the reason, once.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::ptr::null_mut;
use std::sync::Once;

use tch::{Kind, TchError};

use crate::error::border::text;
use crate::error::Result;

extern "C" {
    fn ln_tuning_gpu_load(device: i64, kind: i64, ready: *mut i64) -> *mut c_char;
    fn ln_tuning_gpu_compile(capability: i64, kind: i64, log: *mut *mut c_char) -> *mut c_char;
}

/// The number of a kind in `csrc`, if it has kernels.
fn number(kind: Kind) -> Option<i64> {
    [Kind::Float, Kind::BFloat16, Kind::Half]
        .iter()
        .position(|known| *known == kind)
        .map(|at| at as i64)
}

/// True if there are kernels of this kind on this device. The first call compiles and loads them, which takes a second;
/// while a CUDA graph is captured, nothing is loaded.
pub(super) fn is_ready(device: usize, kind: Kind) -> bool {
    let (Some(kind), Ok(device)) = (number(kind), i64::try_from(device)) else { return false };
    let mut ready = 0;
    // SAFETY: the number is alive and is written before the call returns.
    if let Some(text) = unsafe { text(ln_tuning_gpu_load(device, kind, &mut ready)) } {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            eprintln!(
                "warning: libtorch's operators are used instead of fused functions on CUDA: {text}"
            );
        });
    }
    ready != 0
}

/// The words of NVRTC about the kernels of a kind for a compute capability, times ten; with the registers and the local
/// memory of each.
///
/// # Errors
/// `Torch`, with the reason, if they cannot be compiled.
#[cfg(feature = "models")]
pub fn compiled(capability: i64, kind: Kind) -> Result<String> {
    let mut log = null_mut();
    let kind = number(kind).unwrap_or_default();
    // SAFETY: `log` is written if there is no message, and is one as well.
    let (error, log) = unsafe {
        let error = text(ln_tuning_gpu_compile(capability, kind, &mut log));
        (error, text(log))
    };
    match error {
        Some(error) => Err(TchError::Torch(error).into()),
        None => Ok(log.unwrap_or_default()),
    }
}
