//! A data file that is opened: unpacked, if it is compressed, and known by its format.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::regular;

use super::format::Format;

pub struct Source {
    pub file: File,
    /// The first byte behind a byte-order mark.
    pub start: u64,
    /// The beginning from there.
    pub head: Vec<u8>,
    /// Never `Auto`.
    pub format: Format,
}

/// Bytes that the format is read off.
const HEAD: u64 = 1 << 16;
/// Bytes that are unpacked to look at the first row.
const SAMPLE: u64 = 1 << 20;
const MARK: &[u8] = b"\xef\xbb\xbf";

impl Source {
    /// With only a part of a compressed file if no more than the first row is wanted.
    pub fn open(path: &Path, format: Format, most: usize) -> Result<Self> {
        if path.is_dir() {
            refuse_data_set(path)?;
        }
        let mut file = regular::open(path)?;
        let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut head = beginning(&mut file)?;
        if let Some(mut unpacked) = unpacking(&file, &head)? {
            let damaged = "the compressed file is damaged or cut off";
            head = beginning(&mut unpacked).context(damaged)?;
            refuse_binary(&head)?;
            let most = if most == 1 { SAMPLE } else { u64::MAX };
            let mut all = Cursor::new(&head).chain(unpacked).take(most);
            file = tempfile::tempfile().context("there is no temporary file to unpack it into")?;
            std::io::copy(&mut all, &mut file).context(damaged)?;
        }
        for end in [".gz", ".zst", ".zstd"] {
            let whole = name.len().checked_sub(end.len()).filter(|at| name.is_char_boundary(*at));
            if let Some(at) = whole.filter(|at| name[*at..].eq_ignore_ascii_case(end)) {
                name.truncate(at);
            }
        }
        let start = if head.starts_with(MARK) { MARK.len() } else { 0 };
        head.drain(..start);
        let format = format.of(&name, &head)?;
        if format != Format::Parquet {
            refuse_binary(&head)?;
        }
        Ok(Source { file, start: start as u64, head, format })
    }
}

fn beginning(reader: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// A reader of what is compressed, by the first bytes.
fn unpacking(mut file: &File, head: &[u8]) -> Result<Option<Box<dyn Read>>> {
    file.seek(SeekFrom::Start(0))?;
    Ok(if head.starts_with(b"\x1f\x8b") {
        Some(Box::new(flate2::read::MultiGzDecoder::new(file.try_clone()?)))
    } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
        Some(Box::new(zstd::Decoder::new(file.try_clone()?)?))
    } else {
        None
    })
}

fn refuse_binary(head: &[u8]) -> Result<()> {
    let tar = head.get(257..262).is_some_and(|mark| mark == b"ustar");
    ensure!(!tar, "it is a tar archive: unpack it, and name a file in it");
    if head.starts_with(b"PAR1") || !head.contains(&0) {
        return Ok(());
    }
    let zeros = |odd: usize| head.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count();
    if zeros(0).max(zeros(1)) * 4 > head.len() {
        bail!("it looks like UTF-16 text: convert it with iconv -f UTF-16LE -t UTF-8");
    }
    bail!("it is a binary file, expected text, CSV, JSON or Parquet");
}

/// Refuses a directory that holds a data set in files, rather than images.
pub fn refuse_data_set(dir: &Path) -> Result<()> {
    for file in ["dataset_info.json", "dataset_dict.json", "state.json"] {
        ensure!(
            !dir.join(file).is_file(),
            "it is a data set that datasets' save_to_disk has written: write it as a file, with \
             load_from_disk(…).to_parquet(…)"
        );
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let end = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && ["parquet", "arrow", "jsonl"].contains(&&*end) {
            bail!(
                "it is a directory of data files, such as '{}': name one file, into which the others are put",
                path.display()
            );
        }
    }
    Ok(())
}
