//! Traces: the records of operations that TorchScript modules are made of (`tch::CModule::create_by_tracing`).
//!
//! A trace knows operations of libtorch and nothing else. tch makes a tensor of numbers as one of zeros and writes to its
//! memory afterwards, so that a trace has the zeros. A number that is read off a tensor is the same in each run of the
//! module, whatever its inputs are.

use tch::kind::Element;
#[cfg(feature = "models")]
use tch::Kind;
use tch::{Device, Tensor};

pub(crate) use super::context::is_tracing;
use super::transfer::sent;
use crate::error::{refuse, Result};

/// Numbers of the host on a device, in a copy that nothing waits for. In a trace they are a constant.
pub(crate) fn sent_numbers<T: Element>(numbers: &[T], device: Device) -> Result<Tensor> {
    // Another tensor with the same memory, of which a trace has no operation.
    Ok(sent(&Tensor::f_from_slice(numbers)?, device)?.f_data()?)
}

/// The numbers of a tensor of any shape, read by the host: refused while a trace is recorded.
#[cfg(feature = "models")]
pub(crate) fn numbers_of(tensor: &Tensor, name: &str) -> Result<Vec<i64>> {
    check_not_traced(name)?;
    Ok(Vec::try_from(tensor.f_to_kind(Kind::Int64)?.f_reshape([-1])?)?)
}

/// Refuses what a trace could not record, such as numbers of the inputs that are read by the host, while there is one.
pub(crate) fn check_not_traced(what: &str) -> Result<()> {
    if is_tracing() {
        refuse!(
            Unsupported,
            "{what} cannot be part of a trace (`create_by_tracing`), which records tensors and operations of libtorch and \
             would keep all else as it is now: trace a part of the model that does without, or load the model itself \
             where it is to run"
        );
    }
    Ok(())
}
