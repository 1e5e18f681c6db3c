//! The connections of a process to the others of its group.

use std::env;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tch::{Cuda, Device};

use super::c10d::{self, Backend, Store};
use super::deadline::within;
use super::environment::Environment;
use super::members::{address_towards, gpus, have_gpus, listed, own_address, Member};
use super::rendezvous::{connect, meet};
use crate::error::{refusal, refuse, Error, Result};

/// The time for which a process that fails waits for word from the others.
const WORD: Duration = Duration::from_secs(1);

/// The way to the others.
#[derive(Debug)]
pub(super) struct Joined {
    store: Arc<Store>,
    /// The beginning of this group's keys in the store.
    prefix: String,
    pub(super) nccl: bool,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
enum Connection {
    Open(Backends),
    /// The first error.
    Failed(String),
}

#[derive(Debug)]
pub(super) struct Backends {
    gloo: Backend,
    /// For tensors on CUDA, where every process has a GPU of its own.
    nccl: Option<Backend>,
}

impl Backends {
    /// That for tensors which `ProcessGroup` has put on this device.
    pub(super) fn on(&self, device: Device) -> &Backend {
        self.nccl.as_ref().filter(|_| device.is_cuda()).unwrap_or(&self.gloo)
    }
}

impl Joined {
    pub(super) fn new(place: &Environment, timeout: Duration) -> Result<Self> {
        let until = Instant::now() + timeout;
        let store = connect(place, until)?;
        let own = Member {
            rank: place.rank,
            world_size: place.world_size,
            version: env!("CARGO_PKG_VERSION").into(),
            nonce: nonce(),
            address: address_towards(&place.master_addr, place.master_port),
            gpu: gpu(place),
        };
        let (members, prefix) = meet(&store, &own, place.agent_store, until)?;
        // The user's word, which c10d reads.
        let named = env::var_os("GLOO_SOCKET_IFNAME").is_some_and(|name| !name.is_empty());
        let address = own_address(&own, &members, place.master_port).filter(|_| !named);
        let gloo = Backend::gloo(
            &store,
            &format!("{prefix}/gloo"),
            (place.rank, place.world_size),
            address.map(|address| address.to_string()).as_deref(),
            timeout,
        )
        .map_err(|error| {
            refusal!(
                Distributed,
                "rank {} cannot connect to the other ranks, from the address {}. GLOO_SOCKET_IFNAME names another \
                 network interface ({error})",
                place.rank,
                address.map_or("of its name".into(), |address| address.to_string())
            )
        })?;
        let (every, asked) = (have_gpus(&members), place.nccl == Some(true));
        if asked && !every {
            refuse!(
                Distributed,
                "rank {}: LN_TUNING_NCCL is 1, and NCCL needs a GPU of its own for every rank: {}",
                place.rank,
                gpus(&members)
            );
        }
        // One rank has nobody to send to.
        let nccl = if every && (asked || place.world_size > 1) {
            let place = (place.rank, place.world_size);
            let made = Backend::nccl(&store, &format!("{prefix}/nccl"), place, timeout);
            let failed = |error| {
                refusal!(
                    Distributed,
                    "rank {}: NCCL cannot be used; LN_TUNING_NCCL=0 does without it ({error})",
                    place.0
                )
            };
            Some(made.map_err(failed)?)
        } else {
            None
        };
        Ok(Joined {
            store: Arc::new(store),
            prefix,
            nccl: nccl.is_some(),
            connection: Mutex::new(Connection::Open(Backends { gloo, nccl })),
        })
    }

    /// Runs an operation of c10d. After an error the group is of no use.
    pub(super) fn run(
        &self,
        (rank, world_size): (usize, usize),
        name: &str,
        operation: impl FnOnce(&Backends) -> Result<(), String>,
    ) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match &*connection {
            Connection::Failed(error) => return Err(useless(error)),
            Connection::Open(backends) => match operation(backends) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
        };
        // Closes the connections, so that the others, who may wait for this process, hear of it.
        if let Connection::Open(Backends { nccl: Some(nccl), .. }) = &*connection {
            nccl.abort();
        }
        *connection = Connection::Failed(error.clone());
        drop(connection);
        let silent = match self.silent(rank, world_size) {
            Some(silent) if silent.is_empty() => String::new(),
            Some(silent) => {
                format!("; no word from {}: killed, stopped or out of reach?", listed(&silent))
            }
            None => "; no word from the store, which rank 0 or the launcher serves".into(),
        };
        Err(refusal!(
            Distributed,
            "rank {rank}: {name} with the other {} failed{silent} ({error})",
            if world_size == 2 { "rank" } else { "ranks" }
        ))
    }

    /// The ranks that do not say within a second that an operation of theirs failed as well: the cause, usually. None
    /// if the store is gone.
    fn silent(&self, rank: usize, world_size: usize) -> Option<Vec<usize>> {
        let (store, key) = (self.store.clone(), format!("{}/failed", self.prefix));
        let all = within(WORD, "", move || {
            let error = |error| refusal!(Distributed, "{error}");
            store.append(&key, &format!("{rank}\n")).map_err(error)?;
            let end = Instant::now() + WORD;
            let mut silent = None;
            loop {
                // Rank 0 may have heard of all that it can, and have ended with its store.
                let said = match (store.get(&key), silent) {
                    (Ok(said), _) => said.unwrap_or_default(),
                    (Err(_), Some(silent)) => return Ok(silent),
                    (Err(lost), None) => return Err(error(lost)),
                };
                let said: Vec<usize> = said.lines().filter_map(|rank| rank.parse().ok()).collect();
                let now: Vec<usize> = (0..world_size).filter(|rank| !said.contains(rank)).collect();
                if now.is_empty() || Instant::now() >= end {
                    return Ok(now);
                }
                silent = Some(now);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        all.ok()
    }
}

/// The GPU of this process, if it may use NCCL.
fn gpu(place: &Environment) -> Option<String> {
    if place.nccl == Some(false) {
        return None;
    }
    let devices = usize::try_from(Cuda::device_count()).unwrap_or(0);
    // Launchers that show each process its own GPU only.
    let index = if devices == 1 { 0 } else { place.local_rank };
    (index < devices).then(|| c10d::gpu(index))
}

fn useless(error: &str) -> Error {
    refusal!(
        InvalidState,
        "an earlier operation of this process group failed, so that it is of no use any more: end the program, and \
         start all processes again ({error})"
    )
}

/// Different for every process that ever was, and for every group.
fn nonce() -> String {
    static GROUPS: AtomicU64 = AtomicU64::new(0);
    let count = GROUPS.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    let random = RandomState::new().hash_one((std::process::id(), count, now));
    format!("{now:x}-{:x}-{random:x}", std::process::id())
}
