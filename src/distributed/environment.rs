//! The variables by which a launcher tells a process its place.

use std::ffi::OsString;

use crate::error::{refuse, Result};

/// The variables without which there is no place.
const REQUIRED: [&str; 4] = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"];

/// The place of this process.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Environment {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) local_rank: usize,
    pub(super) master_addr: String,
    pub(super) master_port: u16,
    /// True if the launcher has the store, so that no rank serves it.
    pub(super) agent_store: bool,
    /// False: never by NCCL; true: by NCCL or not at all.
    pub(super) nccl: Option<bool>,
}

/// True if a launcher has given this process a place.
pub(super) fn is_launched(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name| variable(name).is_some_and(|value| !value.is_empty());
    set("RANK") || set("WORLD_SIZE")
}

impl Environment {
    /// Reads all variables, and names all that is wrong with them at once.
    pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        // An empty one is none, as in torch.
        let value = |name: &str| {
            let value = variable(name).filter(|value: &OsString| !value.is_empty());
            value.map(|value| value.to_string_lossy().trim().to_owned())
        };
        let missing: Vec<&str> =
            REQUIRED.into_iter().filter(|name| value(name).is_none()).collect();
        let mut faults = Vec::new();
        if !missing.is_empty() {
            faults.push(format!("not set: {}", missing.join(", ")));
        }
        let mut number = |name: &str, range: std::ops::RangeInclusive<usize>| {
            let value = value(name)?;
            let found = value.parse().ok().filter(|number| range.contains(number));
            if found.is_none() {
                faults.push(format!(
                    "{name} is '{value}', expected a whole number from {} to {}",
                    range.start(),
                    range.end()
                ));
            }
            found
        };
        const MOST: usize = i32::MAX as usize;
        let rank = number("RANK", 0..=MOST - 1);
        let world_size = number("WORLD_SIZE", 1..=MOST);
        let port = number("MASTER_PORT", 1..=usize::from(u16::MAX));
        let local_rank = number("LOCAL_RANK", 0..=MOST - 1);
        if let (Some(rank), Some(size)) = (rank, world_size) {
            if rank >= size {
                faults.push(format!(
                    "RANK is {rank} and WORLD_SIZE {size}, expected ranks from 0 to {}",
                    size - 1
                ));
            }
        }
        let nccl = value("LN_TUNING_NCCL");
        if let Some(other) = nccl.as_ref().filter(|value| !["0", "1"].contains(&value.as_str())) {
            faults.push(format!(
                "LN_TUNING_NCCL is '{other}', expected 0 (never), 1 (or an error), or nothing"
            ));
        }
        let (Some(rank), Some(world_size), Some(port), Some(master_addr), true) =
            (rank, world_size, port, value("MASTER_ADDR"), faults.is_empty())
        else {
            refuse!(
                InvalidConfig,
                "the environment gives this process no place among others: {}. Start the program by `torchrun \
                 --nproc-per-node N --no-python PROGRAM`, or set {} (and LOCAL_RANK) for each process",
                faults.join("; "),
                REQUIRED.join(", ")
            );
        };
        Ok(Environment {
            rank,
            world_size,
            local_rank: local_rank.unwrap_or(0),
            master_addr,
            master_port: port as u16,
            agent_store: value("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
            nccl: nccl.map(|value| value == "1"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "29500"),
    ];

    fn read(changes: &[(&str, &str)]) -> Result<Environment> {
        let found = |name: &str| {
            let mut all = changes.iter().chain(&GOOD);
            all.find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        Environment::read(found)
    }

    #[test]
    fn a_place_is_read_from_the_variables() {
        let place = read(&[]).unwrap();
        let expected = Environment {
            rank: 1,
            world_size: 2,
            local_rank: 0,
            master_addr: "localhost".into(),
            master_port: 29500,
            agent_store: false,
            nccl: None,
        };
        assert_eq!(place, expected);
        let place =
            read(&[("LOCAL_RANK", "7"), ("RANK", " 0 "), ("TORCHELASTIC_USE_AGENT_STORE", "True")]);
        assert_eq!(
            place.unwrap(),
            Environment { rank: 0, local_rank: 7, agent_store: true, ..expected }
        );
        for (word, nccl) in [("", None), ("0", Some(false)), ("1", Some(true))] {
            assert_eq!(read(&[("LN_TUNING_NCCL", word)]).unwrap().nccl, nccl);
        }
        assert!(is_launched(|name| (name == "RANK").then(|| "0".into())));
        assert!(!is_launched(|name| (name == "RANK").then(OsString::new)));
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once_with_the_cure() {
        for (changes, words) in [
            (
                &[("RANK", ""), ("WORLD_SIZE", ""), ("MASTER_ADDR", ""), ("MASTER_PORT", "")][..],
                &["not set: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Start"][..],
            ),
            (
                &[("RANK", ""), ("WORLD_SIZE", "two"), ("MASTER_PORT", "70000")],
                &[
                    "not set: RANK;",
                    "WORLD_SIZE is 'two', expected a whole number from 1",
                    "MASTER_PORT is '70000'",
                ],
            ),
            (&[("RANK", "-1")], &["RANK is '-1', expected a whole number from 0"]),
            (&[("RANK", "2")], &["RANK is 2 and WORLD_SIZE 2, expected ranks from 0 to 1"]),
            (&[("WORLD_SIZE", "0")], &["WORLD_SIZE is '0', expected a whole number from 1"]),
            (&[("WORLD_SIZE", "99999999999999999999")], &["WORLD_SIZE is '99999999999999999999'"]),
            (
                &[("MASTER_PORT", "0")],
                &["MASTER_PORT is '0', expected a whole number from 1 to 65535"],
            ),
            (&[("LOCAL_RANK", "gpu")], &["LOCAL_RANK is 'gpu'"]),
            (&[("LN_TUNING_NCCL", "off")], &["LN_TUNING_NCCL is 'off', expected 0 (never), 1"]),
        ] {
            let error = read(changes).unwrap_err().to_string();
            for word in words.iter().chain(&["`torchrun --nproc-per-node N --no-python PROGRAM`"]) {
                assert!(error.contains(word), "{error}");
            }
        }
    }
}
