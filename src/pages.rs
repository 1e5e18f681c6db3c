//! Pages of tensors that are views of a file's map: read ahead of use, and dropped behind it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rustix::mm::{madvise, Advice};
use tch::{Device, Tensor};

use crate::error::{Error, Result};

/// Bytes that are read at a time: nobody can change the process's maps meanwhile.
const PIECE: usize = 8 << 20;

/// The page table of this process: one entry of eight bytes per page.
const TABLE: &str = "/proc/self/pagemap";

const MAPS: &str = "/proc/self/maps";

/// Bits of an entry.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// The memory of one tensor.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Keeps the memory. Nobody locks it: tensors cannot be shared by threads without.
    _tensor: Mutex<Tensor>,
    start: usize,
    end: usize,
}

impl Pages {
    /// `None` for a tensor that is not in the host's memory, or not in one piece.
    pub(crate) fn of(tensor: &Tensor) -> Result<Option<Self>> {
        if tensor.device() != Device::Cpu || !tensor.is_contiguous() || tensor.numel() == 0 {
            return Ok(None);
        }
        let start = tensor.data_ptr() as usize;
        let end = start + tensor.numel() * tensor.f_kind()?.elt_size_in_bytes();
        Ok(Some(Pages { _tensor: Mutex::new(tensor.f_detach()?), start, end }))
    }

    /// True if all of it is a part of these maps.
    pub(crate) fn is_in(&self, maps: &[Range<usize>]) -> bool {
        maps.iter().any(|map| map.start <= self.start && self.end <= map.end)
    }

    /// Brings the pages into memory, in pieces, as long as `wanted` says. Failure only means that they come later.
    pub(crate) fn fetch(&self, wanted: impl Fn() -> bool) {
        let page = rustix::param::page_size();
        let mut start = self.start / page * page;
        while start < self.end && wanted() {
            let length = PIECE.min(self.end - start);
            // SAFETY: both only read pages of memory that the tensor keeps; nothing in them changes.
            unsafe {
                // All of the piece is asked for at once, then waited for.
                let _ = madvise(start as *mut _, length, Advice::WillNeed);
                let _ = madvise(start as *mut _, length, Advice::LinuxPopulateRead);
            }
            start += length;
        }
    }

    /// Gives back the memory of all pages that are on disk as well; they come again when they are used. Those that
    /// were written to stay, and so does all memory that is no file's.
    ///
    /// No other thread may write to the tensor meanwhile: what it writes could be lost.
    pub(crate) fn give_back(&self) -> Result<()> {
        self.each_run(|state, start, length| {
            if state == OF_A_FILE {
                // SAFETY: these pages are those of a file, as it was mapped: they come again with the same content.
                let given = unsafe {
                    // The system keeps them as long as it has room, and takes them first when it has none; not those
                    // that have just been read ahead.
                    let _ = madvise(start as *mut _, length, Advice::LinuxCold);
                    madvise(start as *mut _, length, Advice::LinuxDontNeed)
                };
                given.map_err(|e| failed("give back memory", e.into()))?;
            }
            Ok(())
        })
    }

    /// Calls `f` for each run of whole pages in one state, with the first byte and the length: `OF_A_FILE`, `PRESENT`
    /// for those in memory or swap alone, 0 for those that are not in memory.
    fn each_run(&self, mut f: impl FnMut(u64, usize, usize) -> Result<()>) -> Result<()> {
        let page = rustix::param::page_size();
        let (first, last) = (self.start.div_ceil(page), self.end / page);
        let table = File::open(TABLE).map_err(|e| failed("open", e))?;
        let mut bytes = vec![0; 8 << 12];
        let (mut begin, mut state, mut at) = (first, 0, first);
        while at < last {
            let count = (bytes.len() / 8).min(last - at);
            let read = table.read_exact_at(&mut bytes[..count * 8], at as u64 * 8);
            read.map_err(|e| failed("read", e))?;
            for entry in bytes[..count * 8].chunks_exact(8) {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                let now = match entry & (PRESENT | SWAPPED) {
                    0 => 0,
                    PRESENT if entry & OF_A_FILE != 0 => OF_A_FILE,
                    _ => PRESENT,
                };
                if now != state {
                    if at > begin {
                        f(state, begin * page, (at - begin) * page)?;
                    }
                    (begin, state) = (at, now);
                }
                at += 1;
            }
        }
        if last > begin {
            f(state, begin * page, (last - begin) * page)?;
        }
        Ok(())
    }
}

/// The memory of this process that is maps of files.
pub(crate) fn file_maps() -> Result<Vec<Range<usize>>> {
    let text = std::fs::read(MAPS).map_err(|e| Error::io("read", MAPS.as_ref(), e))?;
    Ok(of_files(&String::from_utf8_lossy(&text)))
}

/// True for a tensor that is a part of a file's map.
pub(crate) fn is_mapped(tensor: &Tensor) -> bool {
    let pages = Pages::of(tensor).ok().flatten();
    pages.is_some_and(|pages| file_maps().is_ok_and(|maps| pages.is_in(&maps)))
}

/// A line has the range, the rights, the place in the file, the device, the inode (0: no file) and the path.
fn of_files(maps: &str) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let (start, end) = columns.next()?.split_once('-')?;
        let inode = columns.nth(3)?;
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        (inode != "0").then_some(number(start)?..number(end)?)
    };
    let mut all: Vec<Range<usize>> = Vec::new();
    for range in maps.lines().filter_map(range) {
        match all.last_mut() {
            // A part of a map whose rights or settings are others has a line of its own.
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

fn failed(what: &'static str, error: io::Error) -> Error {
    Error::io(what, TABLE.as_ref(), error)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// The state of some pages, in bytes.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    struct Held {
        /// In memory, and on disk as well.
        of_file: usize,
        /// In memory or swap, and nowhere else: written to, or never a file's.
        own: usize,
    }

    fn held(pages: &Pages) -> Held {
        let mut held = Held::default();
        pages
            .each_run(|state, _, length| {
                match state {
                    OF_A_FILE => held.of_file += length,
                    PRESENT => held.own += length,
                    _ => (),
                }
                Ok(())
            })
            .unwrap();
        held
    }

    const LENGTH: usize = 1 << 20;

    fn pattern() -> Vec<u8> {
        (0..LENGTH).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn pages_of_a_file_come_and_go_and_those_that_were_written_to_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, pattern()).unwrap();
        let options = (Kind::Uint8, Device::Cpu);
        let map =
            Tensor::f_from_file(path.to_str().unwrap(), false, LENGTH as i64, options).unwrap();
        let pages = Pages::of(&map).unwrap().unwrap();
        assert!(pages.is_in(&file_maps().unwrap()));
        assert_eq!(held(&pages), Held::default());
        pages.fetch(|| true);
        assert_eq!(held(&pages), Held { of_file: LENGTH, own: 0 });
        pages.give_back().unwrap();
        assert_eq!(held(&pages), Held::default());

        let _ = map.narrow(0, 5000, 2).fill_(7);
        pages.fetch(|| true);
        let own = rustix::param::page_size();
        assert_eq!(held(&pages), Held { of_file: LENGTH - own, own });
        pages.give_back().unwrap();
        assert_eq!(held(&pages), Held { of_file: 0, own });
        let mut expected = pattern();
        expected[5000..5002].fill(7);
        assert!(Vec::<u8>::try_from(&map).unwrap() == expected);
        assert!(std::fs::read(&path).unwrap() == pattern());
        // A part gives back its own pages, and none of its neighbours'.
        let part = Pages::of(&map.narrow(0, own as i64 * 9 + 5, own as i64 * 2)).unwrap().unwrap();
        pages.fetch(|| true);
        part.give_back().unwrap();
        assert_eq!(held(&pages).of_file, LENGTH - 2 * own);
    }

    #[test]
    fn memory_that_is_no_files_is_never_given_back() {
        let tensor = Tensor::ones([LENGTH as i64], (Kind::Uint8, Device::Cpu));
        let pages = Pages::of(&tensor).unwrap().unwrap();
        assert!(!pages.is_in(&file_maps().unwrap()));
        pages.fetch(|| true);
        pages.give_back().unwrap();
        let held = held(&pages);
        assert!(held.of_file == 0 && held.own >= LENGTH - 2 * rustix::param::page_size());
        assert_eq!(tensor.sum(Kind::Int64).int64_value(&[]), LENGTH as i64);
        assert!(Pages::of(&tensor.slice(0, 0, 100, 2)).unwrap().is_none());
    }
}
