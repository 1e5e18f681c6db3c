//! The format of a data file: by its name, and by its first bytes.

use std::path::Path;

use anyhow::{bail, Result};
use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Auto,
    Text,
    Jsonl,
    Json,
    Csv,
    Tsv,
    Parquet,
    /// A folder with a folder of images for each class.
    Images,
}

impl Format {
    /// True for a folder of images at this path.
    pub fn is_images(self, path: &Path) -> bool {
        self == Format::Images || self == Format::Auto && path.is_dir()
    }

    /// The format that the end of a name stands for, in capitals or not.
    fn named(end: &str) -> Option<Self> {
        Some(match end {
            "txt" | "text" | "md" => Format::Text,
            "jsonl" | "ndjson" | "jsonlines" => Format::Jsonl,
            "json" => Format::Json,
            "csv" => Format::Csv,
            "tsv" | "tab" => Format::Tsv,
            "parquet" | "pq" => Format::Parquet,
            _ => return None,
        })
    }

    /// The format of a file: as it is set, or by its first bytes and its name; never `Auto`.
    ///
    /// # Errors
    /// If it is one that is not read; the message names it, and the way out.
    pub fn of(self, name: &str, head: &[u8]) -> Result<Self> {
        let end = Path::new(name).extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let named = FOREIGN.iter().find(|foreign| foreign.ends.contains(&&*end));
        let (text, columns) = (is_text(head), !is_text(head) && head.starts_with(b"PAR1"));
        if self == Format::Text && text {
            return Ok(self);
        }
        if let Some(begun) = FOREIGN.iter().find(|foreign| foreign.begins(head, text)) {
            // Office files are archives.
            let Foreign { what, cure, .. } =
                named.filter(|_| head.starts_with(b"PK")).unwrap_or(begun);
            bail!("it is {what}: {cure}");
        }
        match (self, Self::named(&end)) {
            (Format::Auto | Format::Parquet, _) if columns => Ok(Format::Parquet),
            (format, _) if columns => {
                let format = format!("{format:?}").to_lowercase();
                bail!("it is a Parquet file, and 'data.format' is {format}: leave it out")
            }
            (Format::Auto, Some(Format::Text)) if is_row(head) => bail!(
                "it is named as a text, and it looks like lines of JSON: name it .jsonl, or set 'data.format' to \
                 jsonl or text"
            ),
            (Format::Auto, Some(Format::Parquet)) => {
                bail!("it is named as a Parquet file, and is none")
            }
            (Format::Auto, Some(format)) => Ok(format),
            (Format::Auto, None) => match named {
                Some(Foreign { what, cure, .. }) => {
                    bail!("it is named as {what}: {cure}. Or set 'data.format'")
                }
                None if is_row(head) => Ok(Format::Jsonl),
                None => Ok(Format::Text),
            },
            (format, _) => Ok(format),
        }
    }
}

/// The beginning of a text, which may end within a character.
fn is_text(head: &[u8]) -> bool {
    let whole =
        std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    whole && !head.contains(&0)
}

/// The text begins like an object of JSON.
fn is_row(head: &[u8]) -> bool {
    let inner = head.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    inner.is_some_and(|inner| inner.starts_with(b"\""))
}

/// A format that is not read.
struct Foreign {
    ends: &'static [&'static str],
    /// First bytes; letters may be small or capital.
    begins: &'static [&'static [u8]],
    what: &'static str,
    cure: &'static str,
}

impl Foreign {
    /// A few letters may begin a text as well.
    fn begins(&self, head: &[u8], text: bool) -> bool {
        let like = |bytes: &&[u8]| {
            head.get(..bytes.len()).is_some_and(|head| head.eq_ignore_ascii_case(bytes))
        };
        self.begins.iter().any(|bytes| like(bytes) && (!text || bytes.len() >= TELLING))
    }
}

/// Letters that no data begin with by chance.
const TELLING: usize = 5;

const fn foreign(
    ends: &'static [&'static str],
    begins: &'static [&'static [u8]],
    what: &'static str,
    cure: &'static str,
) -> Foreign {
    Foreign { ends, begins, what, cure }
}

const UNPACK: &str = "unpack it, and name a file in it";
const TABLE: &str = "save it as CSV";
const EXPORT: &str = "write its rows as Parquet or as lines of JSON";
const PYTHON: &str = "write its rows from Python, as Parquet or as lines of JSON";
const TEXT: &str = "save its text as UTF-8";

/// Formats that people have, and the way out.
const FOREIGN: &[Foreign] = &[
    foreign(
        &["arrow", "feather", "ipc"],
        &[b"ARROW1", b"FEA1", b"\xff\xff\xff\xff"],
        "an Arrow file",
        "write it as Parquet, with datasets: Dataset.from_file(…).to_parquet(…)",
    ),
    foreign(&["xlsx", "xlsm", "xls", "ods"], &[], "a spreadsheet", TABLE),
    foreign(&["docx", "doc", "odt", "rtf"], &[b"{\\rtf"], "a document of a word processor", TEXT),
    foreign(
        &[],
        &[b"\xd0\xcf\x11\xe0"],
        "an old file of Office (.xls, .doc)",
        "save it as CSV or text",
    ),
    foreign(&["pdf"], &[b"%PDF-"], "a PDF", TEXT),
    foreign(&["epub"], &[], "an e-book", TEXT),
    foreign(&["npz", "npy"], &[b"\x93NUMPY"], "a file of NumPy", PYTHON),
    foreign(&["pt", "pth", "ckpt"], &[], "a file of PyTorch", PYTHON),
    foreign(
        &["pkl", "pickle"],
        &[b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"],
        "a pickle of Python",
        PYTHON,
    ),
    foreign(&["zip"], &[b"PK\x03\x04", b"PK\x05\x06"], "a ZIP archive", UNPACK),
    foreign(&["tar", "tgz"], &[], "a tar archive", UNPACK),
    foreign(&["7z"], &[b"7z\xbc\xaf\x27\x1c"], "a 7z archive", UNPACK),
    foreign(&["rar"], &[b"Rar!"], "a RAR archive", UNPACK),
    foreign(&["bz2"], &[b"BZh"], "compressed with bzip2", "unpack it with bunzip2"),
    foreign(&["xz", "lzma"], &[b"\xfd7zXZ"], "compressed with xz", "unpack it with unxz"),
    foreign(&["lz4"], &[b"\x04\x22\x4d\x18"], "compressed with lz4", "unpack it with unlz4"),
    foreign(&["br"], &[], "compressed with brotli", "unpack it"),
    foreign(&["orc"], &[b"ORC"], "an ORC file", EXPORT),
    foreign(&["avro"], &[b"Obj\x01"], "an Avro file", EXPORT),
    foreign(&["h5", "hdf5"], &[b"\x89HDF"], "an HDF5 file", EXPORT),
    foreign(&["db", "sqlite", "sqlite3"], &[b"SQLite format 3"], "an SQLite database", EXPORT),
    foreign(&["tfrecord", "tfrecords"], &[], "a TFRecord file", PYTHON),
    foreign(&["safetensors"], &[], "a file of tensors", "name the data"),
    foreign(
        &["bin", "idx", "mds"],
        &[],
        "a binary file, such as tokens or weights",
        "name the texts that it was made of",
    ),
    foreign(
        &["png", "jpg", "jpeg", "gif", "webp"],
        &[b"\x89PNG", b"\xff\xd8\xff", b"GIF8"],
        "a picture",
        "classifiers of images take a folder with a folder for each class, or rows with the paths of pictures",
    ),
    foreign(&["xml"], &[b"<?xml"], "XML", EXPORT),
    foreign(
        &["html", "htm"],
        &[b"<!doctype html", b"<html"],
        "a web page",
        "download the data itself",
    ),
    foreign(&["yaml", "yml", "toml"], &[], "YAML or TOML", "write its rows as lines of JSON"),
    foreign(
        &[],
        &[b"version https://git-lfs"],
        "a pointer of Git LFS instead of the data",
        "fetch the data with git lfs pull",
    ),
    foreign(
        &[],
        &[b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"],
        "UTF-16 or UTF-32 text",
        "convert it with iconv -f UTF-16 -t UTF-8",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_capitals_and_first_bytes_say_the_format() {
        for (name, head, expected) in [
            ("A.CSV", "text,label", Format::Csv),
            ("a.Tsv", "text\tlabel", Format::Tsv),
            ("a.JSON", "[{", Format::Json),
            ("a.ndjson", "{", Format::Jsonl),
            ("a.TXT", "words", Format::Text),
            ("a", "words", Format::Text),
            ("a.log", "[12:00] words", Format::Text),
            ("a", "\n{ \"text\": 1}", Format::Jsonl),
            ("a", "PAR1\x15\0", Format::Parquet),
            ("a.txt", "PAR1\x15\0", Format::Parquet),
            ("a.txt", "PAR1 is a mark, as are PK and ORC", Format::Text),
            ("a.txt", "orcs", Format::Text),
        ] {
            assert_eq!(Format::Auto.of(name, head.as_bytes()).unwrap(), expected, "{name} {head}");
        }
        assert_eq!(Format::Jsonl.of("a.txt", b"{\"text\": 1}").unwrap(), Format::Jsonl);
        assert_eq!(Format::Text.of("a.bin", b"words").unwrap(), Format::Text);
        assert_eq!(Format::Text.of("a.html", b"<html>").unwrap(), Format::Text);
    }

    #[test]
    fn a_format_that_is_not_read_is_named_with_the_way_out() {
        for (name, head, parts) in [
            ("a.xlsx", &b"PK\x03\x04\0"[..], ["a spreadsheet", "CSV"]),
            ("a.csv", b"PK\x03\x04\0", ["a ZIP archive", "unpack"]),
            ("a.arrow", b"ARROW1\0", ["an Arrow file", "to_parquet"]),
            ("a.jsonl", b"\xff\xff\xff\xff\x10", ["an Arrow file", "to_parquet"]),
            ("a.jsonl", b"\xff\xfe{\0", ["UTF-16", "iconv"]),
            ("a.pkl", b"\x80\x04", ["a pickle", "Python"]),
            ("a.bin", b"words", ["a binary file", "data.format"]),
            ("a.json", b"<!DOCTYPE HTML>", ["a web page", "download"]),
            ("a.parquet", b"version https://git-lfs", ["Git LFS", "git lfs pull"]),
            ("a.parquet", b"text", ["Parquet", "is none"]),
            ("a.txt", b"{\"messages\": []}", ["lines of JSON", "data.format"]),
        ] {
            let error = Format::Auto.of(name, head).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{name}: {error}");
            }
        }
    }
}
