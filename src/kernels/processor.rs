//! What this processor is fast in.

use std::sync::OnceLock;

use tch::{Device, Kind};

/// Whether libtorch multiplies matrices of this kind at least about as fast as those in f32.
pub(crate) fn multiplies_fast(kind: Kind, device: Device) -> bool {
    if device != Device::Cpu {
        return true;
    }
    match kind {
        // Without instructions for it, bf16 is several times slower than f32.
        #[cfg(target_arch = "x86_64")]
        Kind::BFloat16 => std::arch::is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "aarch64")]
        Kind::BFloat16 => std::arch::is_aarch64_feature_detected!("bf16"),
        Kind::Float | Kind::Double => true,
        _ => false,
    }
}

/// Whether MKL leaves half of the processor unused, which oneDNN does not: it has AVX-512 and is not Intel's. What
/// Linux says of it is read once.
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
