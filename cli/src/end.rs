//! The end of the process.

use std::ffi::c_int;
use std::io::{stdout, Write};
use std::process::ExitCode;

/// Ends the process at once. libtorch would take its operators apart one by one, a tenth of a second for nothing.
///
/// All that was printed is written before; files are whole as soon as a command has ended.
pub fn with(code: ExitCode) -> ! {
    // A code can be compared and not read. One that is not found cannot be: there are no others.
    let status = (0..=u8::MAX).find(|status| ExitCode::from(*status) == code).unwrap_or(1);
    // Nobody is left to be told of an error.
    let _ = stdout().flush();
    exit(c_int::from(status))
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn exit(status: c_int) -> ! {
    extern "C" {
        fn _exit(status: c_int) -> !;
    }
    // SAFETY: it takes any number, and nothing of this process comes after it.
    unsafe { _exit(status) }
}

#[cfg(not(unix))]
fn exit(status: c_int) -> ! {
    std::process::exit(status)
}
