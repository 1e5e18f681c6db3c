//! The kernels that libtorch may take for attention.
#![allow(unsafe_code)]

use std::ffi::c_void;

use anyhow::{Context, Result};
use clap::ValueEnum;
use libloading::os::unix::Library;

/// The kind of kernel that is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attention {
    Cudnn,
    /// Flash attention, and the memory-efficient kernel where flash has none.
    Flash,
    /// Plain matrix products alone.
    Math,
}

impl Attention {
    pub fn name(self) -> &'static str {
        match self {
            Attention::Cudnn => "cudnn",
            Attention::Flash => "flash",
            Attention::Math => "math",
        }
    }

    /// Makes it the choice of this process, as `torch.nn.attention.sdpa_kernel` does. tch has no call for it.
    pub fn choose(self) -> Result<()> {
        let library = Library::this();
        let switches: [(&[u8], bool); 4] = [
            (b"_ZN2at7Context14setSDPUseCuDNNEb\0", self == Attention::Cudnn),
            (b"_ZN2at7Context14setSDPUseFlashEb\0", self == Attention::Flash),
            (b"_ZN2at7Context21setSDPUseMemEfficientEb\0", self != Attention::Math),
            (b"_ZN2at7Context13setSDPUseMathEb\0", true),
        ];
        // SAFETY: `at::Context& at::globalContext()` and `void at::Context::set…(bool)` of libtorch: a reference is a
        // pointer, `this` is the first argument, and the context lives as long as the process.
        unsafe {
            let context = library
                .get::<unsafe extern "C" fn() -> *mut c_void>(b"_ZN2at13globalContextEv\0")
                .context("libtorch has no at::globalContext")?();
            for (name, on) in switches {
                let set = library.get::<unsafe extern "C" fn(*mut c_void, bool)>(name);
                set.with_context(|| format!("libtorch has no {}", String::from_utf8_lossy(name)))?(
                    context, on,
                );
            }
        }
        Ok(())
    }
}
