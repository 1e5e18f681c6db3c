//! CUDA at the start of the program, before anything can ask libtorch for it.
#![allow(unsafe_code)]

/// Runs before `main`. libtorch keeps its first answer about CUDA, and more than `tch::Cuda` asks: `tch::manual_seed`
/// and every backward pass, also on the CPU. No call of this crate comes before them for certain.
#[used]
#[link_section = ".init_array"]
static AT_START: extern "C" fn() = at_start;

extern "C" fn at_start() {
    let hidden = std::env::var_os("CUDA_VISIBLE_DEVICES");
    let hidden = hidden.is_some_and(|devices| devices.is_empty() || devices == "-1");
    // Without a driver, those who stay on the CPU pay nothing; a failure is told by `cuda_status`.
    if !hidden && super::dynamic::driver().is_ok() {
        let _ = super::loaded();
    }
}
