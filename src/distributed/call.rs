//! A call of an operation: compared with those of the other ranks, sent, and undone if it fails.

use tch::{no_grad, Device, Tensor};

use super::c10d::Backend;
use super::joined::Backends;
use super::operation::ReduceOp;
use super::process_group::ProcessGroup;
use crate::error::{refuse, Result};

impl ProcessGroup {
    /// The texts of all ranks, of any lengths.
    pub(super) fn gather_texts(&self, name: &str, text: &str) -> Result<Vec<String>> {
        let lengths = self.gather(name, &Tensor::from(text.len() as i64), || ())?;
        let lengths = lengths.iter().map(|length| length.f_int64_value(&[]));
        let lengths = lengths.collect::<Result<Vec<i64>, _>>()?;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(lengths.iter().copied().max().unwrap_or(0) as usize, 0);
        let all = self.gather(name, &Tensor::f_from_slice(&bytes)?, || ())?;
        let text = |(bytes, length): (&Tensor, i64)| {
            let bytes = Vec::<u8>::try_from(bytes)?;
            Ok(String::from_utf8_lossy(&bytes[..length as usize]).into_owned())
        };
        all.iter().zip(lengths).map(text).collect()
    }

    /// The tensors of all ranks, each contiguous, on the CPU and of the size of this one.
    pub(super) fn gather(
        &self,
        name: &str,
        own: &Tensor,
        meanwhile: impl FnOnce(),
    ) -> Result<Vec<Tensor>> {
        let mut all = Vec::with_capacity(self.world_size());
        for _ in 0..self.world_size() {
            all.push(own.f_empty_like()?);
        }
        self.run(name, |backends| backends.on(own.device()).all_gather(own, &mut all, meanwhile))?;
        Ok(all)
    }

    /// Adds up a contiguous tensor, in place, whose size is known to be the same on all ranks, and which is where
    /// [`device_for`](Self::device_for) says.
    pub(crate) fn sum(&self, tensor: &mut Tensor) -> Result<()> {
        self.run("all_reduce", |backends| {
            backends.on(tensor.device()).all_reduce(tensor, ReduceOp::Sum.number())
        })
    }

    /// Compares this call with those of the others: c10d ends the process if tensors do not fit.
    pub(super) fn compare_calls(
        &self,
        name: &str,
        tensor: Option<&Tensor>,
        meanwhile: impl FnOnce(),
    ) -> Result<()> {
        if self.world_size() == 1 {
            meanwhile();
            return Ok(());
        }
        let call = match tensor {
            Some(tensor) => {
                let on = match self.device_for(tensor.device()) {
                    Device::Cpu => "",
                    _ => " on CUDA",
                };
                let kind = tensor.f_kind()?;
                format!("{name} of a tensor {:?} of kind {kind:?}{on}", tensor.size())
            }
            None => name.to_owned(),
        };
        // The same number of bytes whatever is called.
        let mut bytes = [0_u8; 128];
        for (to, from) in bytes.iter_mut().zip(call.bytes()) {
            *to = from;
        }
        let all = self.gather(name, &Tensor::f_from_slice(&bytes)?, meanwhile)?;
        let text = |tensor: &Tensor| -> Result<String> {
            let bytes = Vec::<u8>::try_from(tensor)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
        };
        let first = text(&all[0])?;
        for (rank, other) in all.iter().enumerate().skip(1) {
            let other = text(other)?;
            if other != first {
                refuse!(
                    Distributed,
                    "the ranks call operations that do not fit together: rank {rank} calls {other}, but rank 0 {first}"
                );
            }
        }
        Ok(())
    }

    /// True where there is nothing to send.
    pub(super) fn is_alone(&self) -> bool {
        self.world_size() == 1 && !self.uses_nccl()
    }

    /// The device from which tensors that are on this one are sent.
    pub(crate) fn device_for(&self, device: Device) -> Device {
        if device.is_cuda() && self.uses_nccl() {
            device
        } else {
            Device::Cpu
        }
    }

    /// A contiguous copy on that device.
    pub(super) fn copy_to_send(&self, tensor: &Tensor) -> Result<Tensor> {
        let options = (tensor.f_kind()?, self.device_for(tensor.device()));
        let mut copy = Tensor::f_empty(tensor.size(), options)?;
        copy.f_copy_(tensor)?;
        Ok(copy)
    }

    /// Runs an operation on the tensor, after a look at what the others call; on an error, the tensor is as before.
    pub(super) fn in_place(
        &self,
        tensor: &mut Tensor,
        call: &str,
        operation: impl FnOnce(&Backend, &mut Tensor) -> Result<(), String>,
    ) -> Result<()> {
        let device = self.device_for(tensor.device());
        let nothing = self.is_alone() || tensor.numel() == 0;
        // c10d sees memory: neither strides nor a sign that is still to be changed.
        let direct = tensor.device() == device && tensor.is_contiguous() && !tensor.f_is_neg()?;
        // An error of NCCL comes before it writes, or when nobody waits for it any more.
        let saves = direct && device == Device::Cpu && !nothing;
        let mut saved = Ok(None);
        self.compare_calls(call, Some(tensor), || {
            if saves {
                saved = self.memory.save(tensor).map(Some);
            }
        })?;
        let saved = saved?;
        if nothing {
            return Ok(());
        }
        let name = call.split(' ').next().unwrap_or(call);
        let run =
            |tensor: &mut Tensor| self.run(name, |backends| operation(backends.on(device), tensor));
        no_grad(|| match saved {
            Some(saved) => {
                let result = run(tensor);
                self.memory.end(saved, tensor, result)
            }
            None if direct => run(tensor),
            None => {
                let mut copy = self.copy_to_send(tensor)?;
                run(&mut copy)?;
                Ok(tensor.f_copy_(&copy)?)
            }
        })
    }

    /// Runs an operation of c10d. After an error the group is of no use.
    fn run(
        &self,
        name: &str,
        operation: impl FnOnce(&Backends) -> Result<(), String>,
    ) -> Result<()> {
        match &self.joined {
            Some(joined) => joined.run((self.rank(), self.world_size()), name, operation),
            None => Ok(()),
        }
    }
}
