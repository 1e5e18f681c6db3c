//! The fused functions on CUDA (`csrc/gpu`): kernels that NVRTC compiles for the device, found and loaded at the first
//! call. Where that fails, libtorch's operators are used, and standard error has the reason, once.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void, CStr};
use std::sync::Once;

use tch::Kind;

extern "C" {
    fn free(memory: *mut c_void);
    fn ln_tuning_gpu_load(device: i64, kind: i64, ready: *mut i64) -> *mut c_char;
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
    let message = unsafe { ln_tuning_gpu_load(device, kind, &mut ready) };
    if !message.is_null() {
        // SAFETY: the message ends with a zero, and is ours to free.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            free(message.cast());
            text
        };
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            eprintln!(
                "warning: libtorch's operators are used instead of fused functions on CUDA: {text}"
            );
        });
    }
    ready != 0
}
