//! The switch of the functions that compute several operations at once.

use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    static OFF: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f` with libtorch's own operators where this crate has functions that compute several of them at once: norms
/// with the addition before them, gates of MLPs, rotary embeddings, and on CUDA products of one input with several
/// frozen weights. With the feature `kernels` these are used on the CPU and on CUDA, in f32, bf16 and f16; without it,
/// this function changes nothing. Results are the same but for rounding.
///
/// On CUDA, NVRTC, which comes with libtorch's CUDA, compiles them for the device at the first call: about a second for
/// each kind. Where that is not possible, libtorch's operators are used, and standard error has the reason, once;
/// `LN_TUNING_NVRTC` names the library of NVRTC if it is not found. On other systems than Linux, CUDA has none of them.
///
/// It counts for what `f` computes on this thread. A forward pass chooses for its backward pass. The environment
/// variable `LN_TUNING_FUSED=0` turns them off for the whole process.
///
/// ```
/// use ln_tuning::device::without_fused_functions;
/// let x = tch::Tensor::ones([2, 4], (tch::Kind::Float, tch::Device::Cpu));
/// let sum = without_fused_functions(|| x.sum(tch::Kind::Float));
/// assert_eq!(sum.double_value(&[]), 8.);
/// ```
pub fn without_fused_functions<T>(f: impl FnOnce() -> T) -> T {
    // Set back where `f` panics too.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            OFF.set(self.0);
        }
    }
    let _before = Before(OFF.replace(true));
    f()
}

/// True if fused functions may be used.
#[cfg_attr(not(fused), allow(dead_code))]
pub(crate) fn fused_functions_are_on() -> bool {
    static OFF_FOR_ALL: OnceLock<bool> = OnceLock::new();
    let off = || std::env::var_os("LN_TUNING_FUSED").is_some_and(|found| found == "0");
    !*OFF_FOR_ALL.get_or_init(off) && !OFF.get()
}
