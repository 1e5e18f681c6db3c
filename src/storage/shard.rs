//! A safetensors file that is written from pieces of others, none of which need fit into memory together.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{json, Map, Value};
use tch::{no_grad, Kind};

use super::safetensors::{bytes_of, kind_of};
use super::stored::{Stored, StoredTensors};
use crate::error::{Error, Result};
use crate::regular;

/// The new file.
#[derive(Debug)]
pub(crate) struct Shard<'a> {
    /// The header, with its length.
    pub(crate) header: Vec<u8>,
    /// In the order of their bytes.
    pub(crate) entries: Vec<Entry<'a>>,
}

/// One tensor of the new file.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) key: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
    /// Its bytes, in order: those of one tensor, or of several that are concatenated.
    pub(crate) pieces: Vec<Piece<'a>>,
}

/// A tensor of another file, or a part of one. It is cast to the kind of the entry.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) file: &'a StoredTensors,
    pub(crate) stored: Stored,
}

/// The header of a file, with its length, as it stands there.
pub(crate) fn header_of(file: &StoredTensors) -> Result<Vec<u8>> {
    let path = &file.path;
    let start = file.tensors.iter().map(|stored| stored.start).min();
    let failed = |e| Error::io("read", path, e);
    let mut input = regular::open(path)?;
    let end = input.metadata().map_err(failed)?.len();
    let mut bytes = vec![0; start.unwrap_or(end) as usize];
    input.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

impl Entry<'_> {
    fn len(&self) -> u64 {
        self.shape.iter().product::<i64>() as u64 * self.dtype.bitsize() as u64 / 8
    }
}

impl<'a> Entry<'a> {
    /// Puts another tensor in the place of `part` of this one, as it stands in the base's file.
    pub(crate) fn replace(&mut self, part: &Stored, by: Piece<'a>) {
        let inside = |piece: &Piece| {
            (piece.stored.start..=piece.stored.start + piece.stored.len).contains(&part.start)
                && piece.stored.key == part.key
        };
        let Some(at) = self.pieces.iter().rposition(inside) else { return };
        let Piece { file, stored } = self.pieces.remove(at);
        let rest = |start: u64, end: u64| {
            let stored = Stored { start, len: end - start, ..stored.clone() };
            (end > start).then_some(Piece { file, stored })
        };
        let (start, end) = (part.start, part.start + part.len);
        let pieces = [rest(stored.start, start), Some(by), rest(end, stored.start + stored.len)];
        self.pieces.splice(at..at, pieces.into_iter().flatten());
    }
}

impl Shard<'_> {
    /// The number of bytes of the tensors.
    pub(crate) fn data_len(&self) -> u64 {
        self.entries.iter().map(Entry::len).sum()
    }

    pub(crate) fn len(&self) -> u64 {
        self.header.len() as u64 + self.data_len()
    }

    /// Makes the header anew, with the former metadata. Wider kinds come first, so that all are aligned.
    pub(crate) fn make_header(&mut self) {
        self.entries.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
        let former = self.header.get(8..).unwrap_or_default();
        let former: Value = serde_json::from_slice(former).unwrap_or_default();
        let mut fields = Map::new();
        let metadata = former.get("__metadata__").cloned();
        fields.insert("__metadata__".into(), metadata.unwrap_or_else(|| json!({"format": "pt"})));
        let mut start = 0;
        for entry in &self.entries {
            let (dtype, shape, end) = (entry.dtype, &entry.shape, start + entry.len());
            let field = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            fields.insert(entry.key.clone(), field);
            start = end;
        }
        let mut text = Value::Object(fields).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        self.header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
    }

    /// Writes the file and calls `wrote` with numbers of bytes.
    pub(crate) fn write(&self, to: &Path, mut wrote: impl FnMut(u64)) -> Result<()> {
        let writing = |e| Error::io("write", to, e);
        let mut output = BufWriter::new(File::create(to).map_err(writing)?);
        output.write_all(&self.header).map_err(writing)?;
        wrote(self.header.len() as u64);
        let mut buffer = vec![0; 1 << 20];
        for entry in &self.entries {
            for Piece { file, stored } in &entry.pieces {
                if stored.dtype != entry.dtype {
                    let kind = kind_of(entry.dtype).unwrap_or(Kind::Float);
                    // One copy at a time: the tensor as read is dropped before the bytes are made.
                    let bytes = no_grad(|| bytes_of(&file.read(stored)?.f_to_kind(kind)?))?;
                    output.write_all(&bytes).map_err(writing)?;
                    wrote(bytes.len() as u64);
                    continue;
                }
                let reading = |e| Error::io("read", &file.path, e);
                let mut input = regular::open(&file.path)?;
                input.seek(SeekFrom::Start(stored.start)).map_err(reading)?;
                let mut left = stored.len;
                while left > 0 {
                    let length = buffer.len().min(left as usize);
                    input.read_exact(&mut buffer[..length]).map_err(reading)?;
                    output.write_all(&buffer[..length]).map_err(writing)?;
                    left -= length as u64;
                    wrote(length as u64);
                }
            }
        }
        let output = output.into_inner().map_err(|e| writing(e.into_error()))?;
        output.sync_all().map_err(writing)
    }
}
