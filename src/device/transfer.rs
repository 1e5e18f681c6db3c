//! Copies from the host to a device that nothing waits for.

use tch::{Device, Tensor};

use crate::error::Result;

/// `tensor` on `device`. From the host to CUDA by way of pinned memory, since libtorch waits for the device before it
/// copies from any other.
pub(crate) fn sent(tensor: &Tensor, device: Device) -> Result<Tensor> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(_)) => {
            // `f_pin_memory` prints two warnings per call.
            let pinned = tensor.f_internal_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.f_kind()?, true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}
