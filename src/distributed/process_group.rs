//! The processes of a run, and what they do together.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use tch::{no_grad, Kind, Tensor};

use super::deadline::within;
use super::environment::{self, Environment};
use super::joined::Joined;
use super::members::differences;
use super::operation::{sent_kind, ReduceOp};
use super::rendezvous::{Notice, ASKED, LINGER};
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
    pub(super) joined: Option<Joined>,
    pub(super) memory: Memory,
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
        Self::join(timeout, None)
    }

    /// [`from_env_with`](Self::from_env_with), which after five seconds says, once, for whom this process waits: a rank
    /// that was not started, or was told another address, is noticed long before the timeout.
    ///
    /// # Errors
    /// As [`from_env_with`](Self::from_env_with).
    pub fn from_env_with_notice(
        timeout: Duration,
        notice: impl FnOnce(&str) + Send + 'static,
    ) -> Result<Self> {
        Self::join(timeout, Some(Box::new(notice)))
    }

    fn join(timeout: Duration, notice: Option<Notice>) -> Result<Self> {
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
        let alone = place.is_alone();
        let time = if alone { timeout.min(2 * ASKED) } else { time_of(rank, timeout) };
        let joined = within(time, &late, move || Ok(Joined::new(&place, timeout, notice)));
        let joined = match joined {
            Ok(joined) => joined?,
            // It needs nobody.
            Err(_) if alone => None,
            Err(late) => return Err(late),
        };
        let memory = Memory::default();
        Ok(ProcessGroup { rank, world_size, local_rank, timeout, joined, memory })
    }

    /// Processes that came to rank 0 after the group was whole, and why they do not belong to it: another world size, a
    /// rank twice. They get an error; rank 0 may look here, now and then, if it should go on. None on other ranks.
    ///
    /// # Errors
    /// `Distributed` if the store is gone, which a launcher serves.
    pub fn strangers(&self) -> Result<Option<String>> {
        self.joined.as_ref().map_or(Ok(None), Joined::strangers)
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
}

/// Rank 0 may stay a moment longer, to tell the others.
fn time_of(rank: usize, timeout: Duration) -> Duration {
    if rank == 0 {
        timeout.saturating_add(LINGER)
    } else {
        timeout
    }
}
