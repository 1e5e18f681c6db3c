//! The kinds and libraries that are fast on this processor.

use std::sync::OnceLock;

use tch::{Device, Kind};

/// True if libtorch multiplies matrices of this kind about as fast as those in f32, or faster.
pub(crate) fn multiplies_fast(kind: Kind, device: Device) -> bool {
    if device != Device::Cpu {
        return true;
    }
    match kind {
        // Without instructions for bf16, it is several times slower than f32.
        #[cfg(target_arch = "x86_64")]
        Kind::BFloat16 => std::arch::is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "aarch64")]
        Kind::BFloat16 => std::arch::is_aarch64_feature_detected!("bf16"),
        Kind::Float | Kind::Double => true,
        _ => false,
    }
}

/// True if the processor has AVX-512 and is not Intel's: MKL then leaves half of it unused, oneDNN does not. Read from
/// `/proc/cpuinfo` once.
pub(crate) fn mkl_is_slow() -> bool {
    static SLOW: OnceLock<bool> = OnceLock::new();
    *SLOW.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let wide = std::arch::is_x86_feature_detected!("avx512f");
        #[cfg(not(target_arch = "x86_64"))]
        let wide = false;
        let other = || {
            let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let vendor = info.lines().find(|line| line.starts_with("vendor_id"));
            vendor.is_some_and(|line| !line.contains("GenuineIntel"))
        };
        wide && tch::utils::has_mkl() && tch::utils::has_mkldnn() && other()
    })
}
