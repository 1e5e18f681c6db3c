//! The processes of a run, and what they do together.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use tch::{no_grad, Device, Kind, Tensor};

use super::c10d::Backend;
use super::deadline::within;
use super::environment::{self, Environment};
use super::joined::{Backends, Joined};
use super::members::differences;
use super::operation::{sent_kind, ReduceOp};
use super::rendezvous::LINGER;
use super::saved::Memory;
use crate::error::{refuse, Result};

/// The time that anything here takes at most, unless the program says otherwise. That of torch's NCCL.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The processes that a launcher has started together: `torchrun`, or any other that sets `RANK`, `WORLD_SIZE`,
/// `MASTER_ADDR` and `MASTER_PORT`.
///
/// Every process calls the same operations in the same order. Each first compares with the others what it is called
/// with; if that differs, all get an error that says who differs in what.
///
/// ```
/// use ln_tuning::distributed::{ProcessGroup, ReduceOp};
/// // Alone where no launcher has started the program.
/// let group = match ProcessGroup::is_launched() {
///     true => ProcessGroup::from_env()?,
///     false => ProcessGroup::alone(),
/// };
/// let mut rows = tch::Tensor::from(100_i64);
/// group.all_reduce(&mut rows, ReduceOp::Sum)?;
/// assert_eq!(rows.int64_value(&[]), 100 * group.world_size() as i64);
/// if group.rank() == 0 {
///     println!("{} rows on {} processes", rows.int64_value(&[]), group.world_size());
/// }
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "init_process_group")]
#[derive(Debug)]
pub struct ProcessGroup {
    rank: usize,
    world_size: usize,
    local_rank: usize,
    timeout: Duration,
    /// None where the process is alone.
    joined: Option<Joined>,
    memory: Memory,
}

impl ProcessGroup {
    /// True if a launcher has given this process a place among others: `RANK` or `WORLD_SIZE` is set.
    #[doc(alias = "is_torchelastic_launched")]
    pub fn is_launched() -> bool {
        environment::is_launched(|name| env::var_os(name))
    }

    /// Joins the other processes, as the environment says. Waits for all of them, for ten minutes at most.
    ///
    /// Read are `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT` and `TORCHELASTIC_USE_AGENT_STORE`,
    /// which `torchrun` sets, and `GLOO_SOCKET_IFNAME`, which names the network interface of tensors. Without that,
    /// they go through the interface that leads to rank 0.
    ///
    /// Tensors on CUDA go from GPU to GPU by NCCL where every process has one of its own: that of its
    /// [`local_rank`](Self::local_rank), or the only one that it sees. Otherwise, or if `LN_TUNING_NCCL` is 0, they go
    /// through the host's memory; if it is 1, that is an error, and a group of one process uses NCCL as well.
    ///
    /// # Errors
    /// `InvalidConfig` if variables are missing or malformed, all of which it names; `Distributed` if the port is taken,
    /// the others do not come in time, or do not fit: another world size or version of this crate, one rank twice.
    /// All processes that have come get the error, within seconds.
    #[doc(alias = "init_process_group")]
    pub fn from_env() -> Result<Self> {
        Self::from_env_with(TIMEOUT)
    }

    /// [`from_env`](Self::from_env) with the time that it, and every operation of the group, takes at most.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env), and `InvalidArgument` for a time of zero.
    pub fn from_env_with(timeout: Duration) -> Result<Self> {
        if timeout.is_zero() {
            refuse!(InvalidArgument, "the timeout of a process group is zero, expected more");
        }
        // c10d counts milliseconds in 64 bits; a year is for ever.
        let timeout = timeout.min(Duration::from_secs(366 * 24 * 3600));
        let place = Environment::read(|name| env::var_os(name))?;
        let Environment { rank, world_size, local_rank, .. } = place;
        let late = format!(
            "rank {rank} waits for {}:{}, which does not answer as the store of rank 0: MASTER_ADDR and MASTER_PORT must \
             be those of the machine of rank 0",
            place.master_addr, place.master_port
        );
        let time = time_of(rank, timeout);
        let joined = within(time, &late, move || Joined::new(&place, timeout))?;
        let memory = Memory::default();
        Ok(ProcessGroup { rank, world_size, local_rank, timeout, joined: Some(joined), memory })
    }

    /// A group of this process alone, whatever the environment says.
    pub fn alone() -> Self {
        let memory = Memory::default();
        ProcessGroup {
            rank: 0,
            world_size: 1,
            local_rank: 0,
            timeout: TIMEOUT,
            joined: None,
            memory,
        }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// The number of this process on its machine, from 0: that of its GPU. 0 where the launcher does not say it.
    #[doc(alias = "get_node_local_rank")]
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// True if tensors on CUDA go from GPU to GPU, by NCCL.
    pub fn uses_nccl(&self) -> bool {
        self.joined.as_ref().is_some_and(|joined| joined.nccl)
    }

    /// The time that an operation takes at most.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Replaces the tensor, in place, by that which follows from those of all ranks; afterwards all have the same, bit
    /// for bit. It may be on any device and need not be contiguous.
    ///
    /// # Errors
    /// `Distributed` if the ranks call it with another shape, kind or operation, or if one ends or does not answer in
    /// time; the tensor is then as before. (By NCCL nobody waits for the result, so that libtorch ends the process if a
    /// rank ends in between.) `KindMismatch` for a kind that cannot be added, such as a complex one.
    pub fn all_reduce(&self, tensor: &mut Tensor, operation: ReduceOp) -> Result<()> {
        let kind = sent_kind(tensor)?;
        let whole = matches!(kind, Kind::Uint8 | Kind::Int8 | Kind::Int | Kind::Int64);
        if kind == Kind::Bool || (whole && operation == ReduceOp::Mean) {
            refuse!(
                KindMismatch,
                "{operation:?} of a tensor of kind {kind:?}, expected {}: convert it before",
                if whole { "floating-point numbers" } else { "numbers" }
            );
        }
        self.in_place(tensor, &format!("all_reduce {operation:?}"), |backend, tensor| {
            backend.all_reduce(tensor, operation.number())
        })?;
        if operation == ReduceOp::Mean && self.world_size > 1 {
            let _ = no_grad(|| tensor.f_div_scalar_(self.world_size as f64))?;
        }
        Ok(())
    }

    /// Overwrites the tensor, in place, with that of rank `root`. It may be on any device and need not be contiguous.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce), and `InvalidArgument` if there is no rank `root`.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        sent_kind(tensor)?;
        if root >= self.world_size {
            refuse!(
                InvalidArgument,
                "there is no rank {root} to broadcast from: ranks are 0 to {}",
                self.world_size - 1
            );
        }
        self.in_place(tensor, &format!("broadcast from {root}"), |backend, tensor| {
            backend.broadcast(tensor, root)
        })
    }

    /// The tensors of all ranks, in the order of the ranks, on the device of this one.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        sent_kind(tensor)?;
        self.compare_calls("all_gather", Some(tensor), || ())?;
        no_grad(|| {
            let host = self.copy_to_send(tensor)?;
            let all = if self.is_alone() || host.numel() == 0 {
                (0..self.world_size).map(|_| host.shallow_clone()).collect()
            } else {
                self.gather("all_gather", &host, || ())?
            };
            all.iter().map(|part| Ok(part.f_to_device(tensor.device())?)).collect()
        })
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// `Distributed` if one ends, does not answer in time or calls another operation.
    pub fn barrier(&self) -> Result<()> {
        self.compare_calls("barrier", None, || ())
    }

    /// Compares what the ranks say of themselves, by name: a digest of their settings, the number of their rows. Words
    /// in the error are the names and values.
    ///
    /// # Errors
    /// `Distributed`, on all ranks, that says who differs from rank 0 in what; or if one ends or does not answer in
    /// time.
    ///
    /// ```
    /// # use ln_tuning::distributed::ProcessGroup;
    /// # let group = ProcessGroup::alone();
    /// group.verify_equal([("number of rows", "1000"), ("seed", "7")])?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn verify_equal<'a>(
        &self,
        facts: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<()> {
        let facts: BTreeMap<String, String> =
            facts.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        if self.world_size == 1 {
            return Ok(());
        }
        self.compare_calls("verify_equal", None, || ())?;
        let said =
            self.gather_texts("verify_equal", &serde_json::to_string(&facts).unwrap_or_default())?;
        let said: Vec<BTreeMap<String, String>> =
            said.iter().map(|text| serde_json::from_str(text).unwrap_or_default()).collect();
        let differences = differences(&said);
        if !differences.is_empty() {
            refuse!(Distributed, "the ranks do not fit together: {differences}");
        }
        Ok(())
    }

    /// The texts of all ranks, of any lengths.
    fn gather_texts(&self, name: &str, text: &str) -> Result<Vec<String>> {
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
    fn gather(&self, name: &str, own: &Tensor, meanwhile: impl FnOnce()) -> Result<Vec<Tensor>> {
        let mut all = Vec::with_capacity(self.world_size);
        for _ in 0..self.world_size {
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
    fn compare_calls(
        &self,
        name: &str,
        tensor: Option<&Tensor>,
        meanwhile: impl FnOnce(),
    ) -> Result<()> {
        if self.world_size == 1 {
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
    fn is_alone(&self) -> bool {
        self.world_size == 1 && !self.uses_nccl()
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
    fn copy_to_send(&self, tensor: &Tensor) -> Result<Tensor> {
        let options = (tensor.f_kind()?, self.device_for(tensor.device()));
        let mut copy = Tensor::f_empty(tensor.size(), options)?;
        copy.f_copy_(tensor)?;
        Ok(copy)
    }

    /// Runs an operation on the tensor, after a look at what the others call; on an error, the tensor is as before.
    fn in_place(
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
            Some(joined) => joined.run((self.rank, self.world_size), name, operation),
            None => Ok(()),
        }
    }
}

/// Rank 0 may stay a moment longer, to tell the others.
fn time_of(rank: usize, timeout: Duration) -> Duration {
    if rank == 0 {
        timeout.saturating_add(LINGER)
    } else {
        timeout
    }
}
