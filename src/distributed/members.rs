//! The processes of a group as they say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use serde::{Deserialize, Serialize};

/// One process, as it tells the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// The version of this crate.
    pub(super) version: String,
    /// Different for every process that ever was.
    pub(super) nonce: String,
    /// The address of its machine on the way to rank 0.
    pub(super) address: Option<IpAddr>,
    /// The name of its GPU on its machine, if it has one and may use NCCL.
    pub(super) gpu: Option<String>,
}

/// One process per line.
pub(super) fn read(lines: &str) -> Vec<Member> {
    lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The last of the processes with each rank, among those of this world size.
pub(super) fn last_of_each(members: Vec<Member>, world_size: usize) -> Vec<Member> {
    let fitting = members.into_iter().filter(|member| member.world_size == world_size);
    let last: BTreeMap<usize, Member> = fitting.map(|member| (member.rank, member)).collect();
    last.into_values().collect()
}

/// The reason why these processes make no group, if they do not.
pub(super) fn disagreement(members: &[Member]) -> Option<String> {
    let first = members.iter().min_by_key(|member| member.rank)?;
    let mut faults = Vec::new();
    for member in members.iter().filter(|member| member.nonce != first.nonce) {
        let mut differs = |what: &str, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            if found != expected {
                faults.push(format!(
                    "rank {} has {what} {found}, but rank {} has {expected}",
                    member.rank, first.rank
                ));
            }
        };
        differs("WORLD_SIZE", &member.world_size, &first.world_size);
        differs("version of ln-tuning", &member.version, &first.version);
    }
    let mut ranks: Vec<usize> = members.iter().map(|member| member.rank).collect();
    ranks.sort_unstable();
    for pair in ranks.windows(2).filter(|pair| pair[0] == pair[1]) {
        faults.push(format!("two processes have RANK {}", pair[0]));
    }
    if faults.is_empty() {
        return None;
    }
    Some(joined(faults))
}

/// The differences of what ranks say of themselves from what rank 0 says, in words; empty if there are none.
pub(super) fn differences(said: &[BTreeMap<String, String>]) -> String {
    let mut found = Vec::new();
    let nothing = String::from("none");
    let Some((first, others)) = said.split_first() else { return String::new() };
    for (rank, other) in others.iter().enumerate() {
        for name in first.keys().chain(other.keys().filter(|name| !first.contains_key(*name))) {
            let (expected, value) = (first.get(name), other.get(name));
            if expected != value {
                let (expected, value) = (expected.unwrap_or(&nothing), value.unwrap_or(&nothing));
                found.push(format!(
                    "rank {} has {name} {value}, but rank 0 has {expected}",
                    rank + 1
                ));
            }
        }
    }
    joined(found)
}

/// The first of them, and how many more.
fn joined(mut faults: Vec<String>) -> String {
    const MOST: usize = 8;
    let more = faults.len().saturating_sub(MOST);
    faults.truncate(MOST);
    if more > 0 {
        faults.push(format!("and {more} more"));
    }
    faults.join("; ")
}

/// True if every process has a GPU of its own, as NCCL demands.
pub(super) fn have_gpus(members: &[Member]) -> bool {
    let gpu = |member: &Member| Some((member.address?, member.gpu.clone()?));
    let gpus: Option<BTreeSet<_>> = members.iter().map(gpu).collect();
    gpus.is_some_and(|gpus| gpus.len() == members.len())
}

/// The GPUs of all, in words.
pub(super) fn gpus(members: &[Member]) -> String {
    let words = |member: &Member| {
        let gpu = member.gpu.as_ref().map_or("none".into(), |gpu| format!("'{gpu}'"));
        let address = member.address.map_or("an unknown address".into(), |at| at.to_string());
        format!("rank {} has {gpu} at {address}", member.rank)
    };
    joined(members.iter().map(words).collect())
}

/// The ranks from 0 to below `world_size` that are not among the members, as text.
pub(super) fn missing(members: &[Member], world_size: usize) -> String {
    let absent = |rank: &usize| !members.iter().any(|member| member.rank == *rank);
    listed(&(0..world_size).filter(absent).collect::<Vec<_>>())
}

/// `rank 1`, or `ranks 1, 2 and 3`.
pub(super) fn listed(ranks: &[usize]) -> String {
    const MOST: usize = 16;
    let shown: Vec<String> = ranks.iter().take(MOST).map(usize::to_string).collect();
    match (shown.split_last(), ranks.len() > MOST) {
        (None, _) => "no rank".into(),
        (Some((last, [])), _) => format!("rank {last}"),
        (Some(_), true) => format!("ranks {} … ({} of them)", shown.join(", "), ranks.len()),
        (Some((last, others)), false) => format!("ranks {} and {last}", others.join(", ")),
    }
}

/// The address of this machine from which packets go to another one. Nothing is sent.
pub(super) fn address_towards(host: &str, port: u16) -> Option<IpAddr> {
    let towards = |to: SocketAddr| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    (host, port).to_socket_addrs().ok()?.find_map(towards)
}

/// The address at which the others reach this process: on the way to rank 0, unless that is this machine's own loop
/// and others are elsewhere, as where /etc/hosts has the machine's name at 127.0.1.1.
pub(super) fn own_address(own: &Member, members: &[Member], port: u16) -> Option<IpAddr> {
    let inner = |member: &&Member| member.address.is_none_or(|address| address.is_loopback());
    if !inner(&own) {
        return own.address;
    }
    let outer = members.iter().filter_map(|member| member.address).find(|a| !a.is_loopback());
    match outer {
        Some(outer) => address_towards(&outer.to_string(), port),
        None => own.address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(rank: usize, world_size: usize, version: &str) -> Member {
        let (version, nonce) = (version.into(), format!("{rank} {world_size} {version}"));
        Member { rank, world_size, version, nonce, address: None, gpu: None }
    }

    #[test]
    fn processes_that_make_no_group_are_told_who_differs_in_what() {
        let two = [member(1, 2, "1"), member(0, 2, "1")];
        assert_eq!(disagreement(&two), None);
        assert_eq!(missing(&two, 2), "no rank");
        assert_eq!(missing(&two, 3), "rank 2");
        assert_eq!(missing(&two, 5), "ranks 2, 3 and 4");
        assert!(missing(&two, 99).ends_with("16, 17 … (97 of them)"));
        let other = [member(0, 2, "1"), member(1, 4, "2")];
        assert_eq!(
            disagreement(&other).unwrap(),
            "rank 1 has WORLD_SIZE 4, but rank 0 has 2; rank 1 has version of ln-tuning 2, but rank 0 has 1"
        );
        let mut twice = vec![member(0, 2, "1"), member(1, 2, "1"), member(1, 2, "1")];
        twice[2].nonce = "another".into();
        assert_eq!(disagreement(&twice).unwrap(), "two processes have RANK 1");
        let many: Vec<Member> = (0..20).map(|rank| member(rank, 20 + rank, "1")).collect();
        assert!(disagreement(&many).unwrap().ends_with("; and 11 more"));
    }

    #[test]
    fn a_launcher_that_starts_ranks_again_is_not_held_up_by_those_of_before() {
        let all =
            vec![member(0, 2, "1"), member(1, 4, "1"), member(1, 2, "old"), member(1, 2, "1")];
        assert_eq!(last_of_each(all, 2), [member(0, 2, "1"), member(1, 2, "1")]);
    }

    #[test]
    fn differences_are_told_by_rank_and_name() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let same = of(&[("a", "1"), ("b", "2")]);
        assert_eq!(differences(&[same.clone(), same.clone()]), "");
        assert_eq!(
            differences(&[same.clone(), same, of(&[("b", "3"), ("c", "4")])]),
            "rank 2 has a none, but rank 0 has 1; rank 2 has b 3, but rank 0 has 2; rank 2 has c 4, but rank 0 has none"
        );
    }

    #[test]
    fn nccl_is_for_those_who_have_a_gpu_each() {
        let with = |host: u8, gpu: Option<&str>| Member {
            address: Some(IpAddr::from([10, 0, 0, host])),
            gpu: gpu.map(str::to_owned),
            ..member(0, 2, "1")
        };
        assert!(have_gpus(&[with(1, Some("a")), with(1, Some("b")), with(2, Some("a"))]));
        assert!(!have_gpus(&[with(1, Some("a")), with(1, Some("a"))]));
        let lacking = [with(1, Some("a")), with(2, None)];
        assert!(!have_gpus(&lacking));
        assert_eq!(gpus(&lacking), "rank 0 has 'a' at 10.0.0.1; rank 0 has none at 10.0.0.2");
    }

    #[test]
    fn what_a_member_says_is_read_again() {
        let mut member = member(0, 2, "1");
        member.address = address_towards("127.0.0.1", 9);
        assert_eq!(member.address, Some(IpAddr::from([127, 0, 0, 1])));
        let line = serde_json::to_string(&member).unwrap();
        assert_eq!(read(&format!("{line}\nsomething else\n{line}\n")), [member.clone(), member]);
    }
}
