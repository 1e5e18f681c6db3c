//! Launchers: the variables by which they tell a process its place among others.

use anyhow::{anyhow, bail, ensure, Result};

use crate::device::Local;

/// The place of a process, as its launcher says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub rank: usize,
    /// The number of ranks.
    pub size: usize,
    pub local: Local,
}

impl Place {
    /// That of a process without others.
    pub const ALONE: Place = Place { rank: 0, size: 1, local: Local::ALONE };

    /// # Errors
    /// If the launcher's variables are no numbers, or lack one another.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            let number = text.trim().parse();
            Ok(Some(number.map_err(|_| anyhow!("{name} is '{text}', expected a number from 0"))?))
        };
        let (rank, size) = match (number("RANK")?, number("WORLD_SIZE")?) {
            (Some(rank), None) if variable("MASTER_ADDR").is_some() => bail!(
                "RANK is {rank}, MASTER_ADDR is set and WORLD_SIZE is not set: set all of them, as torchrun does, or none"
            ),
            (_, None) | (None, Some(1)) => return Ok(Place::ALONE),
            (None, Some(size)) => {
                bail!("WORLD_SIZE is {size} and RANK is not set: set both, as torchrun does, or neither")
            }
            (Some(rank), Some(size)) => (rank, size),
        };
        ensure!(size > 0, "WORLD_SIZE is 0, expected 1 or more");
        ensure!(rank < size, "RANK is {rank}, expected 0 to {}: WORLD_SIZE is {size}", size - 1);
        // Without them, each machine has one process.
        let (place, count) = match (number("LOCAL_RANK")?, number("LOCAL_WORLD_SIZE")?) {
            (None, None) => (0, 1),
            (None, Some(count)) => (rank % count.max(1), count),
            (Some(place), None) => (place, place + 1),
            (Some(place), Some(count)) => (place, count),
        };
        ensure!(
            place < count,
            "LOCAL_RANK is {place}, expected less than LOCAL_WORLD_SIZE {count}"
        );
        Ok(Place { rank, size, local: Local { rank: place, count } })
    }
}

/// A launcher that starts many processes without RANK, and the variables that it sets instead.
struct Other {
    name: &'static str,
    command: &'static str,
    rank: &'static str,
    local_rank: &'static str,
    /// The number of processes: the first of these that is set.
    sizes: &'static [&'static str],
}

const OTHERS: [Other; 3] = [
    Other {
        name: "SLURM",
        command: "srun",
        rank: "SLURM_PROCID",
        local_rank: "SLURM_LOCALID",
        sizes: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"],
    },
    Other {
        name: "Open MPI",
        command: "mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        sizes: &["OMPI_COMM_WORLD_SIZE"],
    },
    Other {
        name: "MPI",
        command: "mpirun",
        rank: "PMI_RANK",
        local_rank: "MPI_LOCALRANKID",
        sizes: &["PMI_SIZE"],
    },
];

/// A warning, if another launcher has started this process among many and RANK is not set: each trains alone.
pub fn alone_among() -> Option<String> {
    among(|name| std::env::var(name).ok())
}

fn among(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    if variable("RANK").is_some() {
        return None;
    }
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    OTHERS.iter().find_map(|Other { name, command, rank, local_rank, sizes }| {
        let own = number(rank)?;
        let (size, count) = sizes.iter().find_map(|size| Some((size, number(size)?)))?;
        (count > 1).then(|| {
            format!(
                "{name} says that this is process {own} of {count} ({rank}, {size}), and RANK is not set, so that it \
                 trains alone. To let all of them train as one, set MASTER_ADDR to the first machine and MASTER_PORT, and \
                 start: {command} bash -c 'RANK=${rank} LOCAL_RANK=${local_rank} WORLD_SIZE=${size} exec ln-tuning train \
                 …'. To train alone on purpose, set RANK=0 WORLD_SIZE=1"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<'v>(variables: &'v [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'v {
        move |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn a_process_without_a_launcher_is_the_only_rank() {
        for variables in [
            &[][..],
            &[("RANK", "0"), ("WORLD_SIZE", "1")],
            &[("RANK", "3")],
            &[("WORLD_SIZE", "1")],
        ] {
            let place = Place::read(set(variables)).unwrap();
            assert_eq!((place.rank, place.size), (0, 1), "{variables:?}");
        }
    }

    #[test]
    fn the_place_is_that_of_the_launcher() {
        let torchrun =
            [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")];
        let place = |variables: &[(&str, &str)]| {
            let Place { rank, size, local } = Place::read(set(variables)).unwrap();
            (rank, size, local.rank, local.count)
        };
        assert_eq!(place(&torchrun), (5, 8, 1, 4));
        assert_eq!(place(&torchrun[..3]), (5, 8, 1, 2));
        assert_eq!(place(&torchrun[..2]), (5, 8, 0, 1));
    }

    #[test]
    fn variables_that_do_not_fit_each_other_are_refused_by_name() {
        for (variables, words) in [
            (&[("WORLD_SIZE", "2")][..], "WORLD_SIZE is 2 and RANK is not set"),
            (&[("RANK", "0"), ("MASTER_ADDR", "10.0.0.1")], "WORLD_SIZE is not set"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK is 2, expected 0 to 1"),
            (&[("RANK", "1"), ("WORLD_SIZE", "1")], "RANK is 1, expected 0 to 0"),
            (&[("RANK", "-1"), ("WORLD_SIZE", "2")], "RANK is '-1', expected a number"),
            (&[("RANK", "0"), ("WORLD_SIZE", "two")], "WORLD_SIZE is 'two'"),
            (&[("RANK", "0"), ("WORLD_SIZE", "0")], "WORLD_SIZE is 0"),
            (
                &[
                    ("RANK", "0"),
                    ("WORLD_SIZE", "2"),
                    ("LOCAL_RANK", "2"),
                    ("LOCAL_WORLD_SIZE", "2"),
                ],
                "LOCAL_RANK is 2",
            ),
        ] {
            let error = Place::read(set(variables)).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn many_processes_without_rank_are_told_apart_from_one() {
        for (variables, words) in [
            (
                &[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8")][..],
                &["process 3 of 8", "RANK=$SLURM_PROCID", "WORLD_SIZE=$SLURM_NTASKS exec"][..],
            ),
            (
                &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "2")],
                &["process 0 of 2", "WORLD_SIZE=$SLURM_STEP_NUM_TASKS"],
            ),
            (
                &[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")],
                &["Open MPI", "process 1 of 4", "mpirun bash", "$OMPI_COMM_WORLD_LOCAL_RANK"],
            ),
            (&[("PMI_RANK", "1"), ("PMI_SIZE", "2")], &["RANK=$PMI_RANK"]),
        ] {
            let warning = among(set(variables)).expect(words[0]);
            for word in words.iter().chain(&["RANK is not set", "RANK=0 WORLD_SIZE=1"]) {
                assert!(warning.contains(word), "{warning}");
            }
        }
        for variables in [
            &[][..],
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")],
            // A step of one task in a job of eight, such as one torchrun.
            &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_NTASKS", "8")],
            &[("SLURM_NTASKS", "8")],
            &[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8"), ("RANK", "3"), ("WORLD_SIZE", "8")],
            &[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8"), ("RANK", "0"), ("WORLD_SIZE", "1")],
        ] {
            assert_eq!(among(set(variables)), None, "{variables:?}");
        }
    }
}
