//! Whether CUDA can be used, in words.

use std::fmt;
use std::path::PathBuf;

/// Whether CUDA can be used in this process, and why not; [`Display`](fmt::Display) says it in words, with the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaStatus {
    /// CUDA can be used, on this many devices.
    Available {
        /// How many devices libtorch sees.
        devices: usize,
    },
    /// The libtorch in this process is a CPU build: its directory holds no `libtorch_cuda.so`.
    CpuBuild {
        /// The directory of `libtorch_cpu.so`.
        libtorch: PathBuf,
    },
    /// There is a `libtorch_cuda.so`, and the dynamic loader refuses it, most often for a library that it needs.
    LibraryNotLoaded {
        /// The file.
        library: PathBuf,
        /// What the dynamic loader says.
        reason: String,
    },
    /// No `libtorch_cpu.so` is mapped into this process, so that there is no directory to look in: libtorch is linked
    /// statically, or `/proc` is not mounted.
    LibtorchNotFound,
    /// The NVIDIA driver is not installed: `libcuda.so.1` cannot be loaded.
    NoDriver {
        /// What the dynamic loader says.
        reason: String,
    },
    /// The driver is there and fails, for example because it is older than this libtorch's CUDA.
    DriverFailed {
        /// The call and the driver's own words and number.
        reason: String,
    },
    /// `CUDA_VISIBLE_DEVICES` hides every device.
    DevicesHidden {
        /// The variable's value.
        visible: String,
    },
    /// The driver works and finds no device.
    NoDevice,
    /// The driver sees devices, but libtorch was asked about CUDA before `libtorch_cuda.so` was loaded, and keeps its
    /// answer.
    LoadedTooLate {
        /// How many devices the driver sees.
        devices: usize,
    },
    /// Loading at run time is implemented for Linux alone.
    OtherSystem,
}

impl CudaStatus {
    /// Whether CUDA can be used.
    pub fn is_available(&self) -> bool {
        matches!(self, CudaStatus::Available { .. })
    }
}

impl fmt::Display for CudaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaStatus::Available { devices: 1 } => write!(f, "CUDA is available on 1 device"),
            CudaStatus::Available { devices } => write!(f, "CUDA is available on {devices} devices"),
            CudaStatus::CpuBuild { libtorch } => write!(
                f,
                "CUDA is not available: '{}' is a CPU build of libtorch, without libtorch_cuda.so; build with LIBTORCH \
                 set to a CUDA build",
                libtorch.display()
            ),
            CudaStatus::LibraryNotLoaded { library, reason } => write!(
                f,
                "CUDA is not available: '{}' cannot be loaded ({reason}); install what is missing, or add its directory \
                 to LD_LIBRARY_PATH",
                library.display()
            ),
            CudaStatus::LibtorchNotFound => write!(
                f,
                "CUDA is not available: no libtorch_cpu.so is mapped into this process, so there is no place to look \
                 for libtorch_cuda.so; link libtorch dynamically, and mount /proc"
            ),
            CudaStatus::NoDriver { reason } => write!(
                f,
                "CUDA is not available: the NVIDIA driver is not installed ({reason}); install it, or, in a container, \
                 start that with GPU access (docker run --gpus all)"
            ),
            CudaStatus::DriverFailed { reason } => write!(
                f,
                "CUDA is not available: the NVIDIA driver fails ({reason}); compare with nvidia-smi, update the driver, \
                 or use a libtorch for an older CUDA"
            ),
            CudaStatus::DevicesHidden { visible } => write!(
                f,
                "CUDA is not available: CUDA_VISIBLE_DEVICES={visible:?} hides every device; unset it, or name devices \
                 that nvidia-smi lists"
            ),
            CudaStatus::NoDevice => write!(
                f,
                "CUDA is not available: the NVIDIA driver works and finds no device; compare with nvidia-smi"
            ),
            CudaStatus::LoadedTooLate { devices } => write!(
                f,
                "CUDA is not available: the driver sees {devices} device(s), but libtorch was asked about CUDA before \
                 libtorch_cuda.so was loaded, and keeps its answer; call ln_tuning::device::best_device() before \
                 anything else that asks, such as tch::Device::cuda_if_available()"
            ),
            CudaStatus::OtherSystem => write!(
                f,
                "CUDA is not available: loading libtorch_cuda at run time is implemented for Linux alone; link it in \
                 your build script"
            ),
        }
    }
}
