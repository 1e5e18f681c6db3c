//! The switches of the functions that compute several operations at once.

use std::cell::Cell;
use std::sync::OnceLock;
use std::thread::LocalKey;

thread_local! {
    static OFF: Cell<bool> = const { Cell::new(false) };
    static ON_CUDA: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f` with libtorch's own operators where this crate has functions that compute several of them at once: norms
/// with the addition before them, gates of MLPs, rotary embeddings. With the feature `kernels` these are used on the
/// CPU, in f32, bf16 and f16; without it, this function changes nothing. Results are the same but for rounding.
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
    with(&OFF, f)
}

/// Calls `f` with the fused functions of the feature `kernels` on CUDA too, where they are off by default: no GPU has
/// measured them yet. They are norms with the addition before them, gates of MLPs and rotary embeddings, in bf16 and
/// f16; norms in f32 stay libtorch's. NVRTC, which comes with libtorch's CUDA, compiles them for the device at the first
/// call: about a second for each kind. Where that is not possible, libtorch's operators are used, and standard error has
/// the reason, once. Without the feature, and on other systems than Linux, this function changes nothing.
///
/// It counts as [`without_fused_functions`] does, which has the last word. The environment variable
/// `LN_TUNING_FUSED_CUDA=1` turns them on for the whole process; `LN_TUNING_NVRTC` names the library of NVRTC if it is
/// not found.
///
/// ```
/// use ln_tuning::device::{best_device, with_fused_functions_on_cuda};
/// let x = tch::Tensor::ones([2, 4], (tch::Kind::Float, best_device()));
/// let sum = with_fused_functions_on_cuda(|| x.sum(tch::Kind::Float));
/// assert_eq!(sum.double_value(&[]), 8.);
/// ```
pub fn with_fused_functions_on_cuda<T>(f: impl FnOnce() -> T) -> T {
    with(&ON_CUDA, f)
}

/// Calls `f` with this switch set, and sets it back, also where `f` panics.
fn with<T>(switch: &'static LocalKey<Cell<bool>>, f: impl FnOnce() -> T) -> T {
    struct Before(&'static LocalKey<Cell<bool>>, bool);
    impl Drop for Before {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _before = Before(switch, switch.replace(true));
    f()
}

/// True if fused functions may be used.
#[cfg_attr(not(fused), allow(dead_code))]
pub(crate) fn fused_functions_are_on() -> bool {
    static OFF_FOR_ALL: OnceLock<bool> = OnceLock::new();
    !*OFF_FOR_ALL.get_or_init(|| variable_is("LN_TUNING_FUSED", "0")) && !OFF.get()
}

/// True if they may be used on CUDA too.
#[cfg_attr(not(fused_cuda), allow(dead_code))]
pub(crate) fn fused_functions_are_on_for_cuda() -> bool {
    static ON_FOR_ALL: OnceLock<bool> = OnceLock::new();
    *ON_FOR_ALL.get_or_init(|| variable_is("LN_TUNING_FUSED_CUDA", "1")) || ON_CUDA.get()
}

fn variable_is(name: &str, value: &str) -> bool {
    std::env::var_os(name).is_some_and(|found| found == value)
}
