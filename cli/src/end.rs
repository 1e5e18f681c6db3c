//! The end of the process.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

extern "C" {
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    fn fflush(stream: *mut c_void) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// From here on, the process ends at once when it ends. Otherwise libtorch takes down its tables of operators first,
/// one by one, for a third of the time of a short command.
pub fn at_once() {
    // SAFETY: on_exit of the C library keeps this signature in every version; the function lives as long as the
    // process, and ignores its argument. A failure leaves the ordinary end.
    let _ = unsafe { on_exit(leave, null_mut()) };
}

extern "C" fn leave(status: c_int, _: *mut c_void) {
    // Profilers of CUDA write what they have found at the ordinary end.
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    let cuda = b"libtorch_cuda.so";
    if maps.is_empty() || maps.windows(cuda.len()).any(|name| name == cuda) {
        return;
    }
    // SAFETY: fflush of no stream flushes all of them. Rust has flushed its own; nothing is left to do but to leave.
    unsafe {
        fflush(null_mut());
        _exit(status)
    }
}
