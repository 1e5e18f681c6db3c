//! CUDA at run time: load its library, and explain why it is not available.
//!
//! A binary that uses `tch` is linked with `--as-needed`, names no symbol of `libtorch_cuda`, and so does not load it;
//! `Cuda::is_available()` is then false even with a GPU. A build script can add the link, but link arguments do not
//! reach dependants: each binary needs its own. Loading the library at run time works for every binary.
//!
//! libtorch looks for CUDA once, at the first question about it, and `tch::manual_seed` and backward passes on the CPU
//! ask as well. So on Linux a program that uses this crate loads `libtorch_cuda` before `main`, where the NVIDIA driver
//! is installed: about half a second and 120 MB of the host's memory, none of the device's. With
//! `CUDA_VISIBLE_DEVICES` empty or `-1` it is left out.

mod context;
#[cfg(all(target_os = "linux", feature = "models"))]
pub(crate) mod copies;
pub(crate) mod cudnn;
#[cfg(target_os = "linux")]
mod dynamic;
mod fused;
pub(crate) mod grad_mode;
#[cfg(all(fused, target_os = "linux"))]
pub(crate) mod graph;
#[cfg(not(all(fused, target_os = "linux")))]
#[path = "graph_elsewhere.rs"]
pub(crate) mod graph;
mod settings;
#[cfg(target_os = "linux")]
mod start;
mod status;
#[cfg(unix)]
mod symbols;
pub(crate) mod trace;
pub(crate) mod transfer;

pub use cudnn::set_cudnn_attention;
#[cfg(fused)]
pub(crate) use fused::fused_functions_are_on;
pub use fused::without_fused_functions;
pub use settings::{allow_tf32, set_deterministic};
pub use status::CudaStatus;
pub use transfer::sent;

pub use crate::memory::MemoryInfo;

use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::error::{refuse, Error, ErrorKind, Result};

/// Loads `libtorch_cuda.so` into this process, unless it is loaded already. Safe to call from several threads.
///
/// It is loaded from the directory of the `libtorch_cpu.so` that this process uses, and stays loaded until the process
/// ends. Success means that libtorch has CUDA support, not that there is a device: see [`cuda_status`].
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a CPU build of libtorch, one linked statically, and systems other than Linux;
/// [`ErrorKind::MissingFile`] if the dynamic loader refuses the library. The message is that of [`CudaStatus`].
pub fn load_cuda() -> Result<()> {
    cudnn::apply_defaults();
    loaded().as_ref().map_err(|status| {
        let kind = match status {
            CudaStatus::LibraryNotLoaded { .. } => ErrorKind::MissingFile,
            _ => ErrorKind::Unsupported,
        };
        Error::new(kind, status)
    })?;
    Ok(())
}

/// The first CUDA device if there is one, else the CPU; loads `libtorch_cuda.so` first, unless it is loaded already.
///
/// Use it instead of `tch::Device::cuda_if_available()`. If it returns the CPU although there is a GPU, [`cuda_status`]
/// tells the reason.
///
/// ```
/// let device = ln_tuning::device::best_device();
/// if device == tch::Device::Cpu {
///     eprintln!("{}", ln_tuning::device::cuda_status());
/// }
/// let vs = tch::nn::VarStore::new(device);
/// ```
#[doc(alias = "cuda_if_available")]
pub fn best_device() -> Device {
    // A libtorch without CUDA is no error here: use the CPU.
    let _ = load_cuda();
    Device::cuda_if_available()
}

/// The state of CUDA in this process, with the reason if it cannot be used; loads `libtorch_cuda.so` first.
///
/// Asks libtorch and, if libtorch sees no device, the driver itself, without creating a CUDA context.
///
/// ```
/// use ln_tuning::device::{cuda_status, CudaStatus};
/// match cuda_status() {
///     CudaStatus::Available { devices } => println!("{devices} device(s)"),
///     why_not => println!("{why_not}"),
/// }
/// ```
#[doc(alias = "why_no_cuda")]
#[doc(alias = "is_available")]
pub fn cuda_status() -> CudaStatus {
    cudnn::apply_defaults();
    let loaded = loaded();
    // Only now, since libtorch keeps its first answer to this question.
    match usize::try_from(Cuda::device_count()) {
        Ok(devices) if devices > 0 => return CudaStatus::Available { devices },
        _ => {}
    }
    match loaded {
        Ok(()) => without_devices(),
        Err(status) => status.clone(),
    }
}

/// The memory of a CUDA device as its driver counts it, or that of the machine for [`Device::Cpu`]. Limits of a
/// container on the machine's memory are not known here.
///
/// On a GPU, what libtorch keeps for later tensors of this process is not free: what this process and all others have
/// taken is `total - free`. Asking takes microseconds and waits for no kernel. It makes a CUDA context on that device
/// if there is none, and on no other.
///
/// # Errors
/// `InvalidArgument` if there is no such device; `Unsupported` if nothing can be asked there (other devices, CUDA
/// outside Linux, a machine without `/proc`); `Torch` if CUDA's runtime fails.
///
/// ```
/// use ln_tuning::device::{best_device, memory_info};
/// let memory = memory_info(best_device())?;
/// assert!(memory.free <= memory.total);
/// println!("{memory}"); // 22.10 GiB free of 23.44 GiB
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "mem_get_info")]
#[doc(alias = "cudaMemGetInfo")]
pub fn memory_info(device: Device) -> Result<MemoryInfo> {
    match device {
        Device::Cpu => match MemoryInfo::of_host() {
            Some(memory) => Ok(memory),
            None => refuse!(Unsupported, "this system does not tell its memory in /proc/meminfo"),
        },
        Device::Cuda(index) => of_cuda(index),
        other => refuse!(
            Unsupported,
            "the memory of {other:?} cannot be asked for, only that of CUDA and the CPU"
        ),
    }
}

fn of_cuda(index: usize) -> Result<MemoryInfo> {
    let devices = match cuda_status() {
        CudaStatus::Available { devices } => devices,
        status => {
            refuse!(InvalidArgument, "there is no memory of cuda:{index} to ask for. {status}")
        }
    };
    if index >= devices {
        refuse!(
            InvalidArgument,
            "there is no cuda:{index}: the devices are cuda:0 to cuda:{}",
            devices - 1
        );
    }
    #[cfg(target_os = "linux")]
    return match dynamic::memory_of(index) {
        Ok((free, total)) => Ok(MemoryInfo::new(free, total)),
        Err(reason) => refuse!(Torch, "the memory of cuda:{index} cannot be asked for: {reason}"),
    };
    #[cfg(not(target_os = "linux"))]
    refuse!(Unsupported, "the memory of cuda:{index} can be asked for on Linux only");
}

static LOADED: OnceLock<std::result::Result<(), CudaStatus>> = OnceLock::new();

fn loaded() -> &'static std::result::Result<(), CudaStatus> {
    LOADED.get_or_init(|| {
        #[cfg(target_os = "linux")]
        return dynamic::load();
        #[cfg(not(target_os = "linux"))]
        return Err(CudaStatus::OtherSystem);
    })
}

/// The reason why a libtorch with CUDA sees no device.
fn without_devices() -> CudaStatus {
    #[cfg(not(target_os = "linux"))]
    return CudaStatus::OtherSystem;
    #[cfg(target_os = "linux")]
    match dynamic::devices_of_driver() {
        Err(status) => status,
        Ok(0) => match std::env::var_os("CUDA_VISIBLE_DEVICES") {
            Some(visible) => {
                CudaStatus::DevicesHidden { visible: visible.to_string_lossy().into_owned() }
            }
            None => CudaStatus::NoDevice,
        },
        Ok(devices) => CudaStatus::LoadedTooLate { devices },
    }
}
