//! Functions of libtorch and CUDA's runtime by their names, in the running process.
#![allow(unsafe_code)]

use libloading::os::unix::{Library, Symbol, RTLD_LAZY};

/// Not in the header of `libloading`: the library only if it is loaded.
#[cfg(target_os = "linux")]
const RTLD_NOLOAD: i32 = 4;
#[cfg(not(target_os = "linux"))]
const RTLD_NOLOAD: i32 = 0x10;

/// Libraries that know each other, but that a program may not see: a module of Python has libtorch for itself.
const LIBRARIES: [&str; 2] = ["libtorch_cuda.so", "libtorch_cpu.so"];

/// The function of this name that the process uses: one that was loaded before libtorch stands in front of its own.
///
/// # Errors
/// The loader's words, if there is none.
///
/// # Safety
/// `T` is a function pointer of the symbol's type.
pub(super) unsafe fn symbol<T: Copy>(name: &str) -> Result<T, libloading::Error> {
    // SAFETY: as the caller promises. libtorch is never unloaded.
    let find = |library: &Library| unsafe { library.get::<T>(name).map(|found: Symbol<T>| *found) };
    let not_there = match find(&Library::this()) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    let found = LIBRARIES.iter().find_map(|library| {
        // SAFETY: nothing is loaded, and so nothing is initialised.
        let library = unsafe { Library::open(Some(*library), RTLD_LAZY | RTLD_NOLOAD) }.ok()?;
        find(&library).ok()
    });
    found.ok_or(not_there)
}
