//! A file as memory, read-only.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};

/// The bytes of a file, read as they are looked at.
#[derive(Debug)]
pub(crate) struct MappedFile(memmap2::Mmap);

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        // SAFETY: the mapping is private and read-only. That nobody shortens or rewrites the file meanwhile cannot be
        // enforced on any system; whoever replaces a checkpoint by renaming, as this crate does, keeps the old one whole.
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
