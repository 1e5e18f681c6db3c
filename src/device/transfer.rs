//! Copies from the host to a device that nothing waits for.

use std::cell::RefCell;

use tch::{Device, Tensor};

use crate::error::{refuse, Result};

/// `tensor` on `device`, in a copy that nothing waits for; itself if it is there already.
///
/// From the host to CUDA it goes by way of pinned memory, since libtorch waits for the device before it copies from any
/// other.
///
/// # Errors
/// `OutOfMemory` if the device or the host lacks memory; `Torch` if there is no such device; `Unsupported` while a step
/// is captured ([`GraphedStep`](crate::GraphedStep)), if it sends other numbers than the step before.
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
    if tensor.device() == Device::Cpu && device != Device::Cpu {
        KEPT.with_borrow_mut(|kept| match kept {
            Some(kept) => kept.sent(tensor, device),
            None => sent_anew(tensor, device),
        })
    } else {
        Ok(tensor.f_to_device(device)?)
    }
}

/// [`sent`], and never a copy that was kept.
pub(crate) fn sent_anew(tensor: &Tensor, device: Device) -> Result<Tensor> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(_)) => {
            // `f_pin_memory` prints two warnings per call.
            let pinned = tensor.f_internal_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.f_kind()?, true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}

/// Overwrites `to` with numbers of any device. Nothing waits for it.
pub(crate) fn send_into(to: &Tensor, from: &Tensor) -> Result<()> {
    to.shallow_clone().f_copy_(&sent_anew(from, to.device())?)?;
    Ok(())
}

/// True in a step that is captured.
pub(crate) fn is_captured() -> bool {
    KEPT.with_borrow(|kept| kept.as_ref().is_some_and(|kept| kept.complete))
}

/// True in a step like one that is captured later, and in that one.
pub(crate) fn is_to_be_captured() -> bool {
    KEPT.with_borrow(Option::is_some)
}

/// Refuses what the host decides anew in each step while one is captured: its replays would decide as it does.
pub(crate) fn check_not_captured(what: &str) -> Result<()> {
    if is_captured() {
        refuse!(
            Unsupported,
            "the host decides in each step {what}, and a step that is captured would repeat it"
        );
    }
    Ok(())
}

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Tensors that a step has sent, in order: a later step that sends the same uses the copies of the first. A capture must: its
/// replays would copy what stands in the host's memory by then.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    copies: Vec<Copy>,
    /// Those that the present step has sent.
    at: usize,
    /// Anything new is refused.
    complete: bool,
}

#[derive(Debug)]
struct Copy {
    here: Tensor,
    there: Tensor,
}

impl Kept {
    /// Runs a step that sends what is kept, or nothing but that if it is `complete`.
    pub(crate) fn run<T>(&mut self, complete: bool, step: impl FnOnce() -> Result<T>) -> Result<T> {
        /// Brings it back, also where the step panics.
        struct Home<'k>(&'k mut Kept, Option<Kept>);
        impl Drop for Home<'_> {
            fn drop(&mut self) {
                if let Some(kept) = KEPT.replace(self.1.take()) {
                    *self.0 = kept;
                }
            }
        }
        let own = Kept { complete, at: 0, ..std::mem::take(self) };
        let _home = Home(self, KEPT.replace(Some(own)));
        step()
    }

    fn sent(&mut self, tensor: &Tensor, device: Device) -> Result<Tensor> {
        let at = self.at;
        self.at += 1;
        let known = self.copies.get(at).filter(|copy| copy.there.device() == device);
        if let Some(copy) = known {
            let same = copy.here.f_kind()? == tensor.f_kind()? && copy.here.size() == tensor.size();
            if same && copy.here.f_equal(tensor)? {
                return Ok(copy.there.shallow_clone());
            }
        }
        if self.complete {
            refuse!(
                Unsupported,
                "a step that is captured sends numbers {:?} to the device that the step before did not: all that changes \
                 from step to step must be among its inputs",
                tensor.size()
            );
        }
        let there = sent_anew(tensor, device)?;
        self.copies.truncate(at);
        let mut here = tensor.f_empty_like()?;
        here.f_copy_(tensor)?;
        self.copies.push(Copy { here, there: there.shallow_clone() });
        Ok(there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn what_the_host_decides_in_each_step_is_refused_in_a_capture_alone() {
        check_not_captured("it").unwrap();
        Kept::default().run(false, || check_not_captured("it")).unwrap();
        let refused = Kept::default().run(true, || check_not_captured("it")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_step_that_sends_the_same_uses_its_copies_and_another_is_refused_when_it_is_captured() {
        let number = |value: f32| Tensor::from_slice(&[value, 2.]);
        let mut kept = Kept::default();
        let mut send = |complete: bool, values: &[f32]| {
            kept.run(complete, || {
                let mut found = Vec::new();
                for value in values {
                    KEPT.with_borrow_mut(|kept| {
                        let kept = kept.as_mut().expect("it runs");
                        found.push(kept.sent(&number(*value), Device::Cpu)?.data_ptr() as usize);
                        Ok::<_, crate::error::Error>(())
                    })?;
                }
                Ok(found)
            })
        };
        let first = send(false, &[1., 3.]).unwrap();
        assert_ne!(first[0], first[1]);
        assert_eq!(send(false, &[1., 3.]).unwrap(), first);
        assert_eq!(send(true, &[1., 3.]).unwrap(), first);
        assert_eq!(send(true, &[1., 4.]).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(send(true, &[1., 3., 5.]).unwrap_err().kind(), ErrorKind::Unsupported);
        // One that goes on without being captured keeps what it sends now.
        let second = send(false, &[1., 4.]).unwrap();
        assert_eq!((second[0], second[1] == first[1]), (first[0], false));
        assert_eq!(send(true, &[1., 4.]).unwrap(), second);
        assert!(KEPT.with_borrow(Option::is_none));
    }
}
