//! The state of CUDA in this process, and its explanation.

use std::fmt;
use std::path::PathBuf;

/// The state of CUDA in this process. [`Display`](fmt::Display) explains it, with the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaStatus {
    /// CUDA can be used, on this many devices.
    Available {
        /// The number of devices that libtorch sees.
        devices: usize,
    },
    /// The libtorch in this process is a CPU build: its directory holds no `libtorch_cuda.so`.
    CpuBuild {
        /// The directory of `libtorch_cpu.so`.
        libtorch: PathBuf,
    },
    /// The dynamic loader refuses `libtorch_cuda.so`, most often because a library that it needs is missing.
    LibraryNotLoaded {
        /// The file.
        library: PathBuf,
        /// The message of the dynamic loader.
        reason: String,
    },
    /// No `libtorch_cpu.so` is mapped into this process, so its directory is not known: libtorch is linked statically,
    /// or `/proc` is not mounted.
    LibtorchNotFound,
    /// The NVIDIA driver is not installed: `libcuda.so.1` cannot be loaded.
    NoDriver {
        /// The message of the dynamic loader.
        reason: String,
    },
    /// The driver is installed and fails, for example because it is older than this libtorch's CUDA.
    DriverFailed {
        /// The call, the driver's message and its error number.
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
    /// answer. Only if it was not loaded before `main`: see [the module](super).
    LoadedTooLate {
        /// The number of devices that the driver sees.
        devices: usize,
    },
    /// Not Linux: loading at run time is implemented for Linux only.
    OtherSystem,
}

impl CudaStatus {
    /// True if CUDA can be used.
    pub fn is_available(&self) -> bool {
        matches!(self, CudaStatus::Available { .. })
    }
}

impl fmt::Display for CudaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaStatus::Available { devices: 1 } => {
                return write!(f, "CUDA is available on 1 device")
            }
            CudaStatus::Available { devices } => {
                return write!(f, "CUDA is available on {devices} devices")
            }
            _ => f.write_str("CUDA is not available: ")?,
        }
        match self {
            CudaStatus::Available { .. } => Ok(()),
            CudaStatus::CpuBuild { libtorch } => write!(
                f,
                "'{}' is a CPU build of libtorch, without libtorch_cuda.so; build with LIBTORCH set to a CUDA build",
                libtorch.display()
            ),
            CudaStatus::LibraryNotLoaded { library, reason } => write!(
                f,
                "'{}' cannot be loaded ({reason}); install what is missing, or add its directory to LD_LIBRARY_PATH",
                library.display()
            ),
            CudaStatus::LibtorchNotFound => write!(
                f,
                "no libtorch_cpu.so is mapped into this process, so the directory of libtorch_cuda.so is not known; \
                 link libtorch dynamically, and mount /proc"
            ),
            CudaStatus::NoDriver { reason } => write!(
                f,
                "the NVIDIA driver is not installed ({reason}); install it, or give the container access to the GPU \
                 (docker run --gpus all)"
            ),
            CudaStatus::DriverFailed { reason } => write!(
                f,
                "the NVIDIA driver fails ({reason}); compare with nvidia-smi, update the driver, or use a libtorch \
                 for an older CUDA"
            ),
            CudaStatus::DevicesHidden { visible } => write!(
                f,
                "CUDA_VISIBLE_DEVICES={visible:?} hides every device; unset it, or name devices that nvidia-smi lists"
            ),
            CudaStatus::NoDevice => {
                f.write_str("the NVIDIA driver works and finds no device; compare with nvidia-smi")
            }
            CudaStatus::LoadedTooLate { devices } => write!(
                f,
                "the driver sees {devices} device(s), but libtorch was asked about CUDA before libtorch_cuda.so was \
                 loaded, and keeps its answer; call ln_tuning::device::best_device() before all that asks: \
                 tch::manual_seed, a backward pass (also on the CPU), and tch::Cuda"
            ),
            CudaStatus::OtherSystem => write!(
                f,
                "loading libtorch_cuda at run time is implemented for Linux only; link it in your build script"
            ),
        }
    }
}
