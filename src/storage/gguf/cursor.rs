//! A place in the header of a GGUF file, from which values are read as far as the file goes.

use std::path::Path;

use crate::error::{refusal, Error, Result};

/// Bytes from a place on; every read is checked against the end of the file.
#[derive(Clone)]
pub(super) struct Cursor<'f> {
    path: &'f Path,
    bytes: &'f [u8],
    at: usize,
}

impl<'f> Cursor<'f> {
    pub(super) fn new(path: &'f Path, bytes: &'f [u8]) -> Self {
        Cursor { path, bytes, at: 0 }
    }

    /// The place, in bytes from the start of the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The number of bytes that follow.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next bytes; `thing` names them in an error.
    pub(super) fn take(&mut self, len: u64, thing: &str) -> Result<&'f [u8]> {
        let left = self.rest();
        match usize::try_from(len).ok().and_then(|len| left.get(..len)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.refuse(format!(
                "{thing} takes {len} bytes from byte {} on, but the file ends at byte {}: was it cut off? Copy it again",
                self.at,
                self.bytes.len()
            ))),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, thing: &str) -> Result<[u8; N]> {
        let taken = self.take(N as u64, thing)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    pub(super) fn u32(&mut self, thing: &str) -> Result<u32> {
        self.array(thing).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, thing: &str) -> Result<u64> {
        self.array(thing).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `least` bytes each, which must fit into the file.
    pub(super) fn count(&mut self, least: u64, thing: &str) -> Result<u64> {
        let count = self.u64(thing)?;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left() as u64) {
            return Err(self.refuse(format!(
                "{thing} is {count}, but only {} bytes follow: was it cut off? Copy it again",
                self.left()
            )));
        }
        Ok(count)
    }

    /// Bytes with their length before them.
    pub(super) fn bytes(&mut self, thing: &str) -> Result<&'f [u8]> {
        let len = self.u64(thing)?;
        self.take(len, thing)
    }

    /// A text with its length before it.
    pub(super) fn text(&mut self, thing: &str) -> Result<&'f str> {
        let bytes = self.bytes(thing)?;
        std::str::from_utf8(bytes).map_err(|e| {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]);
            self.refuse(format!("{thing} '{shown}' is not UTF-8 text")).caused_by(e)
        })
    }

    /// The bytes that follow.
    pub(super) fn rest(&self) -> &'f [u8] {
        &self.bytes[self.at..]
    }

    /// An error about this file.
    pub(super) fn refuse(&self, message: impl std::fmt::Display) -> Error {
        refusal!(CorruptFile, "'{}': {message}", self.path.display())
    }

    /// An error about something in this file that is well formed and not known here.
    pub(super) fn unsupported(&self, message: impl std::fmt::Display) -> Error {
        refusal!(Unsupported, "'{}': {message}", self.path.display())
    }
}
