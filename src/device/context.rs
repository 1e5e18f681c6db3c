//! The state of libtorch that tch does not bind: `at::Context`, which holds the settings of the process, and the trace of
//! a thread. Functions are found by name in the running process.
#![allow(unsafe_code)]

#[cfg(unix)]
use std::sync::OnceLock;

use crate::error::{refusal, Error, Result};

/// `void at::Context::method(bool)` of the global context, by its mangled name, which holds the types.
#[cfg(unix)]
pub(super) fn setter(method: &str) -> Result<impl Fn(bool)> {
    type Method = unsafe extern "C" fn(*mut std::ffi::c_void, bool);
    // SAFETY: a method is a function whose first argument is the object, in the C++ ABI of Unix; `b` is bool.
    let (context, method) = unsafe { (global()?, symbol::<Method>(method)?) };
    // SAFETY: the context lives as long as the process; its setters store a value and throw nothing.
    Ok(move |value| unsafe { method(context, value) })
}

/// `void at::Context::method(bool, bool)`.
#[cfg(unix)]
pub(super) fn setter_of_two(method: &str) -> Result<impl Fn(bool, bool)> {
    type Method = unsafe extern "C" fn(*mut std::ffi::c_void, bool, bool);
    // SAFETY: as above; `bb` is bool, bool.
    let (context, method) = unsafe { (global()?, symbol::<Method>(method)?) };
    // SAFETY: as above.
    Ok(move |first, second| unsafe { method(context, first, second) })
}

/// True while this thread records a trace. False if libtorch is linked statically, or names the function in another way.
#[cfg(unix)]
pub(crate) fn is_tracing() -> bool {
    type Function = unsafe extern "C" fn() -> *const *const std::ffi::c_void;
    static FOUND: OnceLock<Option<Function>> = OnceLock::new();
    let name = "_ZN5torch3jit6tracer15getTracingStateEv";
    // SAFETY: const std::shared_ptr<TracingState>& getTracingState(): a reference is a pointer in this ABI, and this one
    // is to a variable of the thread, whose first word is the pointer to the state.
    let found = FOUND.get_or_init(|| unsafe { symbol::<Function>(name) }.ok());
    // SAFETY: as above; it throws nothing.
    found.is_some_and(|state| unsafe { !(*state()).is_null() })
}

#[cfg(unix)]
fn global() -> Result<*mut std::ffi::c_void> {
    // SAFETY: Context& at::globalContext(): a reference is a pointer in this ABI. It makes the context if there is
    // none.
    unsafe {
        Ok(symbol::<unsafe extern "C" fn() -> *mut std::ffi::c_void>("_ZN2at13globalContextEv")?())
    }
}

/// # Safety
/// `T` is a function pointer of the symbol's type.
#[cfg(unix)]
unsafe fn symbol<T: Copy>(name: &str) -> Result<T> {
    // SAFETY: as the caller promises.
    unsafe { super::symbols::symbol(name) }.map_err(|_| missing(name))
}

#[cfg(not(unix))]
pub(crate) fn is_tracing() -> bool {
    false
}

#[cfg(not(unix))]
pub(super) fn setter(method: &str) -> Result<impl Fn(bool)> {
    Err::<fn(bool), _>(missing(method))
}

#[cfg(not(unix))]
pub(super) fn setter_of_two(method: &str) -> Result<impl Fn(bool, bool)> {
    Err::<fn(bool, bool), _>(missing(method))
}

fn missing(name: &str) -> Error {
    refusal!(
        Unsupported,
        "this process has no symbol '{name}' of libtorch: link libtorch dynamically (known: 2.11, on Unix)"
    )
}
