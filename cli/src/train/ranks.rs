//! The ranks of a run: the processes that torchrun, or another launcher that sets RANK and WORLD_SIZE, has started for
//! it. Without a launcher there is one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Error, Result};
use ln_tuning::{regular, Optimizer};
use tch::Tensor;
use tempfile::TempDir;

use crate::device::Local;
use crate::one_line::one_line;

#[cfg(distributed)]
use ln_tuning::distributed::{ProcessGroup, ReduceOp};

/// The place of this process among the ranks of a run, and the way to the others.
#[derive(Clone)]
pub struct Ranks(Arc<Inner>);

struct Inner {
    rank: usize,
    size: usize,
    local: Local,
    #[cfg(distributed)]
    group: Option<Arc<ProcessGroup>>,
    phase: AtomicU8,
}

/// All ranks prepare: each is about to say if it could.
const PREPARING: u8 = 0;
/// All ranks make steps together.
const STEPPING: u8 = 1;
/// One of them failed, and all know it.
const FAILED: u8 = 2;

/// Bytes of an error that others hear.
const HEARD: usize = 2000;

/// An error that another rank prints: this one only ends.
#[derive(Debug)]
pub struct SaidElsewhere;

impl std::fmt::Display for SaidElsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another rank says what is wrong")
    }
}

impl std::error::Error for SaidElsewhere {}

impl Ranks {
    /// One process without others.
    pub fn alone() -> Self {
        Ranks::new(0, 1, Local::ALONE)
    }

    fn new(rank: usize, size: usize, local: Local) -> Self {
        Ranks(Arc::new(Inner {
            rank,
            size,
            local,
            #[cfg(distributed)]
            group: None,
            phase: AtomicU8::new(PREPARING),
        }))
    }

    /// The place that the launcher gave to this process. Others are not met yet.
    ///
    /// # Errors
    /// If the launcher's variables are no numbers, or lack one another.
    pub fn of_launcher() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            let number = text.trim().parse();
            Ok(Some(number.map_err(|_| anyhow!("{name} is '{text}', expected a number from 0"))?))
        };
        let (rank, size) = match (number("RANK")?, number("WORLD_SIZE")?) {
            (Some(rank), None) if variable("MASTER_ADDR").is_some() => bail!(
                "RANK is {rank}, MASTER_ADDR is set and WORLD_SIZE is not set: set all of them, as torchrun does, or none"
            ),
            (_, None) | (None, Some(1)) => return Ok(Ranks::alone()),
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
        Ok(Ranks::new(rank, size, Local { rank: place, count }))
    }

    /// Meets the other ranks. That, and all that they do together, takes so long at most.
    #[cfg(distributed)]
    pub fn connect(self, timeout: Duration) -> Result<Self> {
        if self.are_one() {
            return Ok(self);
        }
        let Inner { rank, size, local, .. } = *self.0;
        let group =
            ProcessGroup::from_env_with(timeout).map_err(|error| self.named(error.into()))?;
        let group = Arc::new(group);
        let phase = AtomicU8::new(PREPARING);
        Ok(Ranks(Arc::new(Inner { rank, size, local, group: Some(group), phase })))
    }

    #[cfg(not(distributed))]
    pub fn connect(self, _timeout: Duration) -> Result<Self> {
        ensure!(
            self.are_one(),
            "WORLD_SIZE is {}, and this ln-tuning trains in one process: build it with the feature 'distributed', \
             which it has by default",
            self.size()
        );
        Ok(self)
    }

    /// From 0.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// The place among the ranks of this machine.
    pub fn local(&self) -> Local {
        self.0.local
    }

    /// True for the rank that writes and prints.
    pub fn is_first(&self) -> bool {
        self.0.rank == 0
    }

    /// True if there is one rank.
    pub fn are_one(&self) -> bool {
        self.0.size == 1
    }

    /// Lets the gradients of an optimiser be those of all ranks.
    pub fn join(&self, optimizer: &mut Optimizer) -> Result<()> {
        #[cfg(distributed)]
        if let Some(group) = &self.0.group {
            optimizer.set_process_group(group.clone())?;
        }
        let _ = optimizer;
        Ok(())
    }

    /// The mean loss over the targets of all ranks, whose gradient takes the place of this rank's.
    pub fn reduce(&self, optimizer: &mut Optimizer, own: &Tensor, targets: i64) -> Result<Tensor> {
        #[cfg(distributed)]
        if self.0.group.is_some() {
            return Ok(optimizer.all_reduce(own, targets)?.0);
        }
        let _ = (optimizer, targets);
        Ok(own.shallow_clone())
    }

    /// Adds up each number over the ranks.
    pub fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        if self.are_one() || numbers.is_empty() {
            return Ok(());
        }
        let sum = self.summed(Tensor::f_from_slice(numbers)?)?;
        numbers.copy_from_slice(&Vec::<f64>::try_from(sum)?);
        Ok(())
    }

    /// The bytes that rank 0 has; those of others do not count.
    pub fn bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        if self.are_one() {
            return Ok(bytes);
        }
        let bytes = if self.is_first() { bytes } else { Vec::new() };
        let mut length = [bytes.len() as f64];
        self.sum(&mut length)?;
        let mut whole = bytes;
        whole.resize(length[0] as usize, 0);
        if whole.is_empty() {
            return Ok(whole);
        }
        Ok(Vec::try_from(self.summed(Tensor::f_from_slice(&whole)?)?)?)
    }

    /// A directory of rank 0, at this path there: elsewhere a copy of the files in it, which need not see the path.
    ///
    /// # Errors
    /// On all ranks, if rank 0 cannot read it.
    pub fn directory(&self, path: &Path) -> Result<Directory> {
        if self.are_one() {
            return Ok(Directory { path: path.to_owned(), _copy: None });
        }
        let read = || -> Result<Vec<(String, Vec<u8>)>> {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    files.push((name, regular::read(&entry.path())?));
                }
            }
            Ok(files)
        };
        let files = if self.is_first() { read() } else { Ok(Vec::new()) };
        let files = files.with_context(|| format!("cannot read '{}'", path.display()));
        let files = self.agree(files)?;
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let names = self.bytes(serde_json::to_vec(&names)?)?;
        let names: Vec<String> = serde_json::from_slice(&names)?;
        if self.is_first() {
            for (_, bytes) in files {
                self.bytes(bytes)?;
            }
            return Ok(Directory { path: path.to_owned(), _copy: None });
        }
        let copy = tempfile::tempdir();
        let mut written = copy.as_ref().map(drop).map_err(|error| anyhow!("{error}"));
        for name in names {
            // All are received, whatever happens to one.
            let bytes = self.bytes(Vec::new())?;
            if let (Ok(()), Ok(copy)) = (&written, &copy) {
                let file = copy.path().join(&name);
                written = std::fs::write(&file, bytes)
                    .with_context(|| format!("cannot write '{}'", file.display()));
            }
        }
        written?;
        let copy = copy?;
        Ok(Directory { path: copy.path().to_owned(), _copy: Some(copy) })
    }

    /// The value that this rank has prepared, once all ranks could prepare.
    ///
    /// # Errors
    /// On all ranks, if one could not: that rank has its own error, or [`SaidElsewhere`] if a lower one has the same.
    pub fn agree<T>(&self, prepared: Result<T>) -> Result<T> {
        if self.are_one() {
            return prepared;
        }
        let own = prepared.as_ref().err().map(|error| shortened(&one_line(error)));
        let errors = self.errors(own.as_deref().unwrap_or_default());
        let errors = match (errors, prepared) {
            (Ok(errors), prepared) if errors.iter().all(String::is_empty) => return prepared,
            (Ok(errors), prepared) => {
                self.set(FAILED);
                (errors, prepared)
            }
            // This one's own error says more than that others are gone.
            (Err(_), Err(own)) => {
                self.set(FAILED);
                return Err(own);
            }
            (Err(error), Ok(_)) => {
                self.set(FAILED);
                return Err(error);
            }
        };
        let (errors, prepared) = errors;
        let first = errors.iter().position(|error| !error.is_empty()).unwrap_or_default();
        let said = errors.iter().position(|error| Some(error) == own.as_ref());
        match prepared {
            Err(_) if said.is_some_and(|said| said < self.rank()) => Err(SaidElsewhere.into()),
            Err(error) => Err(error),
            Ok(_) => bail!("stopped, since rank {first} failed: {}", errors[first]),
        }
    }

    /// The error of a rank that could not prepare, after telling the others, if they wait to hear of it.
    pub fn failed(&self, error: Error) -> Error {
        let told =
            if self.phase() == PREPARING { self.agree::<()>(Err(error)) } else { Err(error) };
        let error = told.err().unwrap_or_else(|| SaidElsewhere.into());
        if self.are_one() || error.is::<SaidElsewhere>() {
            return error;
        }
        self.named(error)
    }

    /// The error, with the rank that has it.
    fn named(&self, error: Error) -> Error {
        let place = format!("rank {}", self.rank());
        if error.to_string().starts_with(&place) {
            return error;
        }
        error.context(place)
    }

    /// Refuses ranks that have not the same.
    pub fn check_same(&self, what: &str, value: &str) -> Result<()> {
        #[cfg(distributed)]
        if let Some(group) = &self.0.group {
            group.verify_equal([(what, value)])?;
        }
        let _ = (what, value);
        Ok(())
    }

    /// Runs steps that all ranks make together. An error in them is for the others the end of a connection.
    pub fn stepping<T>(&self, steps: impl FnOnce() -> Result<T>) -> Result<T> {
        self.set(STEPPING);
        let done = steps()?;
        self.set(PREPARING);
        Ok(done)
    }

    /// The error of each rank, or nothing.
    fn errors(&self, own: &str) -> Result<Vec<String>> {
        let mut all = vec![0_u8; self.size() * HEARD];
        all[self.rank() * HEARD..][..own.len()].copy_from_slice(own.as_bytes());
        let all = Vec::<u8>::try_from(self.summed(Tensor::f_from_slice(&all)?)?)?;
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        Ok(all.chunks(HEARD).map(text).collect())
    }

    /// The sum of tensors on the CPU.
    #[cfg(distributed)]
    fn summed(&self, mut tensor: Tensor) -> Result<Tensor> {
        if let Some(group) = &self.0.group {
            group.all_reduce(&mut tensor, ReduceOp::Sum)?;
        }
        Ok(tensor)
    }

    #[cfg(not(distributed))]
    fn summed(&self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor)
    }

    fn phase(&self) -> u8 {
        self.0.phase.load(Ordering::SeqCst)
    }

    fn set(&self, phase: u8) {
        self.0.phase.store(phase, Ordering::SeqCst);
    }
}

/// A directory, or a copy of it that goes when this does.
pub struct Directory {
    pub path: PathBuf,
    _copy: Option<TempDir>,
}

/// As much of a text as others hear, without zeros.
fn shortened(text: &str) -> String {
    let mut text = text.replace('\0', "");
    while text.len() > HEARD {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(variables: &[(&str, &str)]) -> Result<Ranks> {
        Ranks::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_process_without_a_launcher_is_the_only_rank() {
        for variables in [
            &[][..],
            &[("RANK", "0"), ("WORLD_SIZE", "1")],
            &[("RANK", "3")],
            &[("WORLD_SIZE", "1")],
        ] {
            let ranks = ranks(variables).unwrap();
            assert!(ranks.are_one() && ranks.is_first(), "{variables:?}");
            let error = ranks.failed(anyhow!("bad data"));
            assert_eq!(error.to_string(), "bad data");
        }
    }

    #[test]
    fn the_place_is_that_of_the_launcher() {
        let torchrun =
            [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")];
        let place = |variables: &[(&str, &str)]| {
            let ranks = ranks(variables).unwrap();
            (ranks.rank(), ranks.size(), ranks.local().rank, ranks.local().count)
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
            let error = ranks(variables).err().expect(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
