//! The c10d of a libtorch, for the feature `distributed`.

use std::fs::File;
use std::io::{Error, Read, Result, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The constructors that `c10d.cpp` calls, as the compiler names them.
const NEEDED: [&str; 2] = ["_ZN4c10d8TCPStoreC1E", "_ZN4c10d16ProcessGroupGlooC1E"];

/// The reason why this libtorch cannot connect processes, if it cannot.
pub fn check(lib: &Path, os: &str) -> std::result::Result<(), String> {
    if os != "linux" {
        return Err(format!("needs Linux, and this is built for {os}: leave the feature out"));
    }
    let cure = "set LIBTORCH to one that is built with USE_DISTRIBUTED and USE_GLOO, as those of pytorch.org and of \
                PyPI are, or leave the feature out";
    let header = lib.join("../include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp");
    if !header.is_file() {
        return Err(format!(
            "needs a libtorch with c10d, and '{}' is not there: {cure}",
            header.display()
        ));
    }
    let library = lib.join("libtorch_cpu.so");
    // A static one shows when it is linked.
    if !library.is_file() {
        return Ok(());
    }
    let absent = absent(&library)
        .map_err(|error| format!("cannot read '{}': {error}", library.display()))?;
    match absent {
        None => Ok(()),
        Some(name) => Err(format!(
            "needs a libtorch with c10d and Gloo, and '{}' lacks {name}: {cure}",
            library.display()
        )),
    }
}

/// The first name that is needed and that an ELF library of 64 bits does not have.
fn absent(library: &Path) -> Result<Option<&'static str>> {
    let mut file = File::open(library)?;
    let head = read(&mut file, 0, 64)?;
    let (start, size, count) =
        (number(&head, 0x28, 8), number(&head, 0x3a, 2), number(&head, 0x3c, 2));
    let mut needed = NEEDED.to_vec();
    for section in 0..count {
        let section = read(&mut file, start + section * size, 64)?;
        // A table of names.
        if number(&section, 4, 4) == 3 {
            let names = read(&mut file, number(&section, 0x18, 8), number(&section, 0x20, 8))?;
            for name in names.split(|byte| *byte == 0) {
                needed.retain(|needed| !name.starts_with(needed.as_bytes()));
            }
        }
    }
    Ok(needed.first().copied())
}

fn read(file: &mut File, start: u64, length: u64) -> Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(Error::other)?;
    let mut bytes = Vec::with_capacity(length.min(1 << 28));
    file.seek(SeekFrom::Start(start))?;
    file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(Error::other("it ends too early"));
    }
    Ok(bytes)
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A folder with the headers of Gloo that c10d's includes and libtorch does not have. They are empty: `c10d.cpp`
/// has the few names that are needed.
pub fn gloo() -> Result<PathBuf> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("gloo_headers");
    for name in
        ["algorithm.h", "common/error.h", "context.h", "rendezvous/store.h", "transport/device.h"]
    {
        let path = out.join("gloo").join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&out))?;
        std::fs::write(path, "")?;
    }
    Ok(out)
}
