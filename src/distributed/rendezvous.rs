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
use super::deadline::within;
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

/// The time after which a process that waits says so: launchers start processes within seconds of each other.
const SAID: Duration = Duration::from_secs(10);
/// The time that a process takes at most to ask who else is there, where it need not wait for anybody.
pub(super) const ASKED: Duration = Duration::from_secs(2);

/// Waiting for others: a little longer each time, and with a word after a while.
pub(super) struct Patience {
    begun: Instant,
    until: Instant,
    pause: Duration,
    /// Gets the word, once.
    notice: Option<Notice>,
}

/// Takes in for whom a process waits.
pub(super) type Notice = Box<dyn FnOnce(&str) + Send>;

impl Patience {
    pub(super) fn new(timeout: Duration, notice: Option<Notice>) -> Self {
        let begun = Instant::now();
        Patience { begun, until: begun + timeout, pause: FIRST, notice }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn wait(&mut self, whom: impl FnOnce() -> String) {
        if self.begun.elapsed() >= SAID {
            if let Some(notice) = self.notice.take() {
                notice(&format!("{}; it gives up in {} s", whom(), self.left().as_secs()));
            }
        }
        thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(100));
    }
}

/// The first pause.
const FIRST: Duration = Duration::from_millis(2);

/// Connects to the store of rank 0 or of the launcher. None for a process that is alone, if it cannot serve one: it
/// needs none.
pub(super) fn connect(
    place: &Environment,
    own: &Member,
    patience: &mut Patience,
) -> Result<Option<Store>> {
    let Environment { rank, master_addr, master_port, agent_store, .. } = place;
    let (serves, alone) = (*rank == 0 && !agent_store, place.is_alone());
    // A name may come to be known only when its machine does, and the store is served only when rank 0 is there. c10d
    // waits for both, but cannot tell them apart.
    while let Err(reason) = reach(master_addr, *master_port, serves, patience.left()) {
        if alone {
            return Ok(None);
        }
        if patience.left().is_zero() {
            refuse!(
                Distributed,
                "rank {rank} {reason}. MASTER_ADDR and MASTER_PORT must be those of the machine of rank 0, rank 0 must run, \
                 and no firewall may be between"
            );
        }
        patience.wait(|| format!("rank {rank} waits for rank 0: it {reason}"));
    }
    let time = if alone { ASKED } else { patience.left() };
    let error = match Store::connect(master_addr, *master_port, serves, time) {
        Ok(store) => return Ok(Some(store)),
        Err(error) => error,
    };
    let taken = serves && (error.contains("EADDRINUSE") || error.contains("already in use"));
    if let Some(fault) = taken.then(|| told(place, own)).flatten() {
        refuse!(
            Distributed,
            "the processes do not make a group: {fault}. If the other one is of an earlier run, choose another MASTER_PORT \
             than {master_port}"
        );
    }
    if alone {
        return Ok(None);
    }
    if taken {
        refuse!(
            Distributed,
            "rank 0 cannot listen at MASTER_PORT {master_port}: another program does, an earlier run perhaps. Choose \
             another port, or let `torchrun --standalone` do it ({error})"
        );
    }
    refuse!(
        Distributed,
        "rank {rank} cannot use {master_addr}:{master_port} as the store of rank 0: is it another service? ({error})"
    )
}

/// Tells the process that serves a store where this one would, if it is a rank 0 that does not belong together with this
/// one. Gives the reason that both have.
fn told(place: &Environment, own: &Member) -> Option<String> {
    let (host, port, own) = (place.master_addr.clone(), place.master_port, own.clone());
    let asked = within(ASKED, "nobody answers", move || {
        let store = Store::connect(&host, port, false, ASKED).map_err(lost)?;
        tell(&store, &own)
    });
    asked.ok().flatten()
}

/// Adds a process to those who have come to another rank 0, if that is one of its own.
fn tell(store: &Store, own: &Member) -> Result<Option<String>> {
    let Some(leader) = store.get(LEADER).map_err(lost)? else { return Ok(None) };
    let come = format!("{}/members", prefix(&leader));
    let others = members::read(&store.get(&come).map_err(lost)?.unwrap_or_default());
    let Some(first) = others.into_iter().find(|member| member.nonce == leader) else {
        return Ok(None);
    };
    // Each is alone, and has the same port by chance.
    if first.world_size == 1 && own.world_size == 1 {
        return Ok(None);
    }
    store.append(&come, &line(own)).map_err(lost)?;
    Ok(disagreement(&[first, own.clone()]))
}

/// Processes that have come to this rank 0 since it has begun without them, in words. None if there are none.
pub(super) fn strangers(store: &Store, own: &Member, begun: &[Member]) -> Result<Option<String>> {
    let come = format!("{}/members", prefix(&own.nonce));
    let all = members::read(&store.get(&come).map_err(lost)?.unwrap_or_default());
    let known = |member: &Member| begun.iter().any(|other| other.nonce == member.nonce);
    let mut found: Vec<Member> = vec![own.clone()];
    found.extend(all.into_iter().filter(|member| !known(member)));
    Ok(disagreement(&found))
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
    patience: &mut Patience,
) -> Result<(Vec<Member>, String)> {
    patience.pause = FIRST;
    let (members, prefix) = if own.rank == 0 {
        (lead(store, own, agent_store, patience)?, prefix(&own.nonce))
    } else {
        follow(store, own, agent_store, patience)?
    };
    Ok((members, prefix))
}

fn prefix(leader: &str) -> String {
    format!("ln_tuning/{leader}")
}

fn lead(
    store: &Store,
    own: &Member,
    agent_store: bool,
    patience: &mut Patience,
) -> Result<Vec<Member>> {
    // The store that this process serves is new, unless MASTER_ADDR leads to another machine with a rank 0.
    if !agent_store {
        if let Some(fault) = tell(store, own)? {
            refuse!(Distributed, "the processes do not make a group: {fault}");
        }
    }
    let prefix = prefix(&own.nonce);
    let (come, answer) = (format!("{prefix}/members"), format!("{prefix}/answer"));
    store.append(&come, &line(own)).and_then(|()| store.set(LEADER, &own.nonce)).map_err(lost)?;
    let present = || {
        let members = members::read(&store.get(&come).map_err(lost)?.unwrap_or_default());
        // A launcher gives every rank once, and the same world size to all: any other process is one of an earlier
        // round that waits still.
        Ok::<_, Error>(if agent_store { last_of_each(members, own.world_size) } else { members })
    };
    loop {
        let mut members = present()?;
        members.sort_by_key(|member| member.rank);
        let late = patience.left().is_zero();
        let fault = disagreement(&members).or_else(|| {
            let absent = || missing(&members, own.world_size);
            late.then(|| format!("{} of {} did not come in time", absent(), own.world_size))
        });
        let complete = members.len() == own.world_size;
        if fault.is_none() && !complete {
            let (absent, size) = (missing(&members, own.world_size), own.world_size);
            patience.wait(|| format!("rank 0 waits for {absent} of {size}"));
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
    patience: &mut Patience,
) -> Result<(Vec<Member>, String)> {
    let mut leader: Option<String> = None;
    loop {
        let now = store.get(LEADER).map_err(lost)?;
        if now != leader {
            leader = now;
            patience.pause = FIRST;
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
        if patience.left().is_zero() {
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
        patience.wait(|| {
            let said = come.map(|come| store.get(&format!("{come}/members")));
            let whom = match said {
                Some(Ok(present)) => {
                    missing(&members::read(&present.unwrap_or_default()), own.world_size)
                }
                _ => "rank 0".into(),
            };
            format!("rank {} waits for {whom} of {}", own.rank, own.world_size)
        });
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
