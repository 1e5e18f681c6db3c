//! Copies from the host to a device that nothing waits for.

use tch::{Device, Tensor};

use crate::error::Result;

/// `tensor` on `device`, in a copy that nothing waits for; itself if it is there already.
///
/// From the host to CUDA it goes by way of pinned memory, since libtorch waits for the device before it copies from any
/// other.
///
/// # Errors
/// `OutOfMemory` if the device or the host lacks memory; `Torch` if there is no such device.
///
/// ```
/// use ln_tuning::device::{best_device, sent};
/// let ids = sent(&tch::Tensor::from_slice(&[1_i64, 2]), best_device())?;
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "non_blocking")]
#[doc(alias = "to_device")]
#[doc(alias = "pin_memory")]
pub fn sent(tensor: &Tensor, device: Device) -> Result<Tensor> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(_)) => {
            // `f_pin_memory` prints two warnings per call.
            let pinned = tensor.f_internal_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.f_kind()?, true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}
