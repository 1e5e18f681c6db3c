//! The meeting of the processes in a store, before any of them sends a tensor to another: c10d ends a process whose
//! tensors do not fit those of the others.
//!
//! A store may outlive the processes, since launchers keep theirs when they start all processes again, and their count
//! of restarts differs between machines. So rank 0 begins each time under a prefix of its own, and all others go where
//! the present rank 0 is.

use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::c10d::Store;
use super::environment::Environment;
use super::members::{self, disagreement, last_of_each, missing, Member};
use crate::error::{refusal, refuse, Error, Result};

/// The key of the nonce of the present rank 0.
const LEADER: &str = "ln_tuning/leader";
/// The time for which rank 0, if it serves the store, stays after an error, so that the others read it too.
pub(super) const LINGER: Duration = Duration::from_secs(3);

/// The answer of rank 0 to all who have come.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    members: Vec<Member>,
    /// The reason why they make no group, if they do not.
    fault: Option<String>,
}

/// Waits a little longer each time.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Pause(Duration::from_millis(2))
    }

    fn wait(&mut self) {
        thread::sleep(self.0);
        self.0 = (self.0 * 2).min(Duration::from_millis(100));
    }
}

/// Connects to the store of rank 0 or of the launcher.
pub(super) fn connect(place: &Environment, until: Instant) -> Result<Store> {
    let Environment { rank, master_addr, master_port, agent_store, .. } = place;
    let serves = *rank == 0 && !agent_store;
    let left = || until.saturating_duration_since(Instant::now());
    let mut pause = Pause::new();
    // A name may come to be known only when its machine does, and the store is served only when rank 0 is there. c10d
    // waits for both, but cannot tell them apart.
    while let Err(reason) = reach(master_addr, *master_port, serves, left()) {
        if left().is_zero() {
            refuse!(
                Distributed,
                "rank {rank} {reason}. MASTER_ADDR and MASTER_PORT must be those of the machine of rank 0, rank 0 must run, \
                 and no firewall may be between"
            );
        }
        pause.wait();
    }
    Store::connect(master_addr, *master_port, serves, left()).map_err(|error| {
        if serves && (error.contains("EADDRINUSE") || error.contains("already in use")) {
            return refusal!(
                Distributed,
                "rank 0 cannot listen at MASTER_PORT {master_port}: another program does, an earlier run perhaps. \
                 Choose another port, or let `torchrun --standalone` do it ({error})"
            );
        }
        refusal!(
            Distributed,
            "rank {rank} cannot use {master_addr}:{master_port} as the store of rank 0: is it another service? ({error})"
        )
    })
}

/// Looks for the host, and for somebody who listens unless this process `serves`. Gives the reason if there is none.
fn reach(host: &str, port: u16, serves: bool, left: Duration) -> std::result::Result<(), String> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|error| format!("does not find the host '{host}' ({error})"))?;
    let mut reason = format!("finds no address of the host '{host}'");
    for address in found {
        if serves {
            return Ok(());
        }
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(_) => return Ok(()),
            Err(error) => reason = format!("finds nobody at {host}:{port} ({error})"),
        }
    }
    Err(reason)
}

/// Waits for all processes of the group. Gives them, and the prefix of their keys in the store.
pub(super) fn meet(
    store: &Store,
    own: &Member,
    agent_store: bool,
    until: Instant,
) -> Result<(Vec<Member>, String)> {
    let (members, prefix) = if own.rank == 0 {
        (lead(store, own, agent_store, until)?, prefix(&own.nonce))
    } else {
        follow(store, own, agent_store, until)?
    };
    Ok((members, prefix))
}

fn prefix(leader: &str) -> String {
    format!("ln_tuning/{leader}")
}

fn lead(store: &Store, own: &Member, agent_store: bool, until: Instant) -> Result<Vec<Member>> {
    let prefix = prefix(&own.nonce);
    let (come, answer) = (format!("{prefix}/members"), format!("{prefix}/answer"));
    store.append(&come, &line(own)).and_then(|()| store.set(LEADER, &own.nonce)).map_err(lost)?;
    let mut pause = Pause::new();
    let present = || {
        let members = members::read(&store.get(&come).map_err(lost)?.unwrap_or_default());
        // A launcher gives every rank once, and the same world size to all: any other process is one of an earlier
        // round that waits still.
        Ok::<_, Error>(if agent_store { last_of_each(members, own.world_size) } else { members })
    };
    loop {
        let mut members = present()?;
        members.sort_by_key(|member| member.rank);
        let late = Instant::now() >= until;
        let fault = disagreement(&members).or_else(|| {
            let absent = || missing(&members, own.world_size);
            late.then(|| format!("{} of {} did not come in time", absent(), own.world_size))
        });
        let complete = members.len() == own.world_size;
        if fault.is_none() && !complete {
            pause.wait();
            continue;
        }
        let say = |members: Vec<Member>| {
            let text = serde_json::to_string(&Answer { members, fault: fault.clone() });
            store.set(&answer, &text.unwrap_or_default()).map_err(lost)
        };
        say(members.clone())?;
        let Some(fault) = &fault else { return Ok(members) };
        // Those who come a moment later are told as well.
        let end = Instant::now() + LINGER;
        while !agent_store
            && Instant::now() < end
            && come_and_gone(store, &prefix) < own.world_size - 1
        {
            thread::sleep(Duration::from_millis(20));
            say(present()?)?;
        }
        refuse!(Distributed, "the processes do not make a group: {fault}");
    }
}

fn follow(
    store: &Store,
    own: &Member,
    agent_store: bool,
    until: Instant,
) -> Result<(Vec<Member>, String)> {
    let mut leader: Option<String> = None;
    let mut pause = Pause::new();
    loop {
        let now = store.get(LEADER).map_err(lost)?;
        if now != leader {
            leader = now;
            pause = Pause::new();
            if let Some(leader) = &leader {
                store.append(&format!("{}/members", prefix(leader)), &line(own)).map_err(lost)?;
            }
        }
        let come = leader.as_deref().map(prefix);
        if let Some(come) = &come {
            let answer = store.get(&format!("{come}/answer")).map_err(lost)?;
            let answer: Option<Answer> =
                answer.and_then(|answer| serde_json::from_str(&answer).ok());
            if let Some(Answer { members, fault }) = answer {
                let among = members.iter().any(|member| member.nonce == own.nonce);
                // A launcher's store still has the answers of those who ran before.
                if among || !agent_store {
                    if let Some(fault) = fault {
                        say_gone(store, come);
                        refuse!(Distributed, "the processes do not make a group: {fault}");
                    }
                    if among {
                        return Ok((members, come.clone()));
                    }
                    let size = members.first().map_or(0, |member| member.world_size);
                    refuse!(
                        Distributed,
                        "rank 0 has begun without this process: WORLD_SIZE is {size} there, and {} here, which is rank \
                         {}",
                        own.world_size,
                        own.rank
                    );
                }
            }
        }
        if Instant::now() >= until {
            let Some(come) = come else {
                refuse!(
                    Distributed,
                    "rank 0 did not come in time, for which rank {} waits",
                    own.rank
                )
            };
            let present = store.get(&format!("{come}/members")).map_err(lost)?.unwrap_or_default();
            refuse!(
                Distributed,
                "{} of {} did not come in time, for which rank {} waits",
                missing(&members::read(&present), own.world_size),
                own.world_size,
                own.rank
            );
        }
        pause.wait();
    }
}

/// The ranks that have read an error.
fn come_and_gone(store: &Store, key: &str) -> usize {
    let gone = store.get(&format!("{key}/gone"));
    gone.map_or(usize::MAX, |gone| gone.map_or(0, |gone| gone.len()))
}

fn say_gone(store: &Store, key: &str) {
    // Best effort: rank 0 leaves after a while anyhow.
    let _ = store.append(&format!("{key}/gone"), ".");
}

fn line(member: &Member) -> String {
    serde_json::to_string(member).unwrap_or_default() + "\n"
}

fn lost(error: String) -> Error {
    refusal!(
        Distributed,
        "the connection to the store is lost: rank 0 or the launcher, which serves it, has ended ({error})"
    )
}
