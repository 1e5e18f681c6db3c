//! The content of a tensor before an operation that can fail half-way.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::error::Result;

/// Memory for such content, which is kept for the next operation: the system takes longer to give fresh memory of that
/// size than a copy takes.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Option<Tensor>>);

/// The content of one tensor, and the memory that it is in.
pub(super) struct Saved {
    memory: Tensor,
    content: Tensor,
}

impl Memory {
    /// Copies a contiguous tensor of the CPU.
    pub(super) fn save(&self, tensor: &Tensor) -> Result<Saved> {
        let bytes = bytes(tensor)?;
        let size = bytes.size1()?;
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let memory = match kept.filter(|memory| memory.numel() as i64 >= size) {
            Some(memory) => memory,
            None => Tensor::f_empty([size], (Kind::Uint8, tensor.device()))?,
        };
        let mut content = memory.f_narrow(0, 0, size)?;
        content.f_copy_(&bytes)?;
        Ok(Saved { memory, content })
    }

    /// Takes the memory back, and the content to the tensor if the operation has failed.
    pub(super) fn end<T>(&self, saved: Saved, tensor: &Tensor, result: Result<T>) -> Result<T> {
        if result.is_err() {
            bytes(tensor)?.f_copy_(&saved.content)?;
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved.memory);
        result
    }
}

/// A view of the memory of a contiguous tensor.
fn bytes(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_view([-1])?.f_view_dtype(Kind::Uint8)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::refuse;

    #[test]
    fn a_tensor_has_its_content_again_after_a_failure_only() {
        let memory = Memory::default();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Int64, Kind::Bool] {
            for size in [3_i64, 1, 1000, 2] {
                let before = Tensor::arange(size, (Kind::Int64, tch::Device::Cpu)).to_kind(kind);
                for fails in [false, true] {
                    let tensor = before.copy();
                    let saved = memory.save(&tensor).unwrap();
                    let _ = tensor.shallow_clone().fill_(1);
                    let result = if fails {
                        (|| refuse!(Distributed, "a rank has ended"))()
                    } else {
                        Ok(())
                    };
                    assert_eq!(memory.end(saved, &tensor, result).is_err(), fails);
                    let expected = if fails { before.copy() } else { before.ones_like() };
                    assert_eq!(tensor, expected);
                }
            }
        }
        // The largest one is kept.
        let kept = memory.0.lock().unwrap();
        assert_eq!(kept.as_ref().map(Tensor::numel), Some(8000));
    }
}
