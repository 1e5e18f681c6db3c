//! The border to `csrc`: a function gives null, or the message of an error, which its caller frees (`csrc/guarded.h`).
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void, CStr};
#[cfg(feature = "kernels")]
use std::ptr::null_mut;

#[cfg(feature = "kernels")]
use tch::{TchError, Tensor};
#[cfg(feature = "kernels")]
use torch_sys::C_tensor;

extern "C" {
    fn free(memory: *mut c_void);
}

/// The text of a message, which is freed.
///
/// # Safety
/// It is null, or made by `strdup`, and used nowhere else.
pub(crate) unsafe fn text(message: *mut c_char) -> Option<String> {
    if message.is_null() {
        return None;
    }
    // SAFETY: the message ends with a zero.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as the caller promises.
    unsafe { free(message.cast()) };
    Some(text)
}

/// The error behind a message, if there is one.
///
/// # Safety
/// As [`text`].
#[cfg(feature = "kernels")]
pub(crate) unsafe fn checked(message: *mut c_char) -> Result<(), TchError> {
    // SAFETY: as the caller promises.
    unsafe { text(message) }.map_or(Ok(()), |text| Err(TchError::Torch(text)))
}

/// The tensors that a function of `csrc` makes, or its error.
///
/// # Safety
/// It leaves new tensors, `N` at most, and gives what [`text`] takes.
#[cfg(feature = "kernels")]
pub(crate) unsafe fn made<const N: usize>(
    call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char,
) -> Result<[Option<Tensor>; N], TchError> {
    let mut results = [null_mut(); N];
    // SAFETY: as the caller promises.
    unsafe { checked(call(results.as_mut_ptr())) }?;
    // SAFETY: pointers that are not null are of new tensors, which are ours.
    Ok(results.map(|result| (!result.is_null()).then(|| unsafe { Tensor::from_ptr(result) })))
}
