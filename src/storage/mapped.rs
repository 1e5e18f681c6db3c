//! A file as memory, read-only.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};
use crate::regular;

/// The bytes of a file, read from disk on first access.
#[derive(Debug)]
pub(crate) struct MappedFile(memmap2::Mmap);

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = regular::open(path)?;
        // SAFETY: the mapping is private and read-only. No system can stop another process from truncating or rewriting
        // the file meanwhile; replacing a checkpoint by renaming, as this crate does, leaves the mapped one whole.
        let map = unsafe { memmap2::Mmap::map(&file) };
        map.map(MappedFile).map_err(|e| Error::io("map", path, e))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
