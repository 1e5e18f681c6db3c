//! GGUF files that are written: new ones, and copies in which some tensors and metadata are others.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use super::file::GgufFile;
use super::metadata::{alignment, check_key};
use super::tensors::GgufTensor;
use super::value::MetadataValue;
use crate::error::{refusal, refuse, Error, Result};
use crate::quantised::BlockType;
use crate::storage::atomic;

/// Writes a GGUF file, version 3.
///
/// ```
/// use ln_tuning::gguf::{BlockType, GgufFile, GgufWriter};
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("new.gguf");
/// let mut writer = GgufWriter::new();
/// writer.set("general.architecture", "llama")?;
/// writer.add("output_norm.weight", BlockType::F32, &[2], vec![0, 0, 128, 63, 0, 0, 0, 64])?;
/// writer.write(&path)?;
/// let norm = GgufFile::open(&path)?.tensors()[0].clone();
/// assert_eq!((norm.name.as_str(), norm.shape), ("output_norm.weight", vec![2]));
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug, Default)]
#[doc(alias = "GGUFWriter")]
pub struct GgufWriter<'f> {
    metadata: Vec<(String, MetadataValue)>,
    tensors: Vec<(GgufTensor, Bytes<'f>)>,
}

/// The bytes of a tensor.
enum Bytes<'f> {
    Here(Cow<'f, [u8]>),
    /// Made when they are written, so that a model need not fit into memory.
    Later(Box<dyn Fn() -> Result<Vec<u8>> + 'f>),
}

impl std::fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bytes::Here(bytes) => write!(f, "{} bytes", bytes.len()),
            Bytes::Later(_) => f.write_str("bytes made later"),
        }
    }
}

impl<'f> Bytes<'f> {
    fn get(&self) -> Result<Cow<'_, [u8]>> {
        match self {
            Bytes::Here(bytes) => Ok(Cow::Borrowed(bytes)),
            Bytes::Later(make) => make().map(Cow::Owned),
        }
    }
}

impl<'f> GgufWriter<'f> {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// The metadata and tensors of a file, in their order. Bytes of tensors are read when they are written.
    ///
    /// # Errors
    /// As [`GgufFile::bytes`].
    pub fn copy_of(file: &'f GgufFile) -> Result<Self> {
        let metadata = file.metadata().iter();
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect();
        let tensors = file.tensors().iter();
        let tensors =
            tensors.map(|tensor| Ok((tensor.clone(), Bytes::Here(file.bytes(tensor)?.into()))));
        Ok(GgufWriter { metadata, tensors: tensors.collect::<Result<_>>()? })
    }

    /// Sets the value of a key, in its former place if there is one.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty or very long key, or an alignment that is no power of two.
    pub fn set(&mut self, key: &str, value: impl Into<MetadataValue>) -> Result<()> {
        let value = value.into();
        let checked = check_key(key);
        let checked = match key {
            "general.alignment" => checked.and(alignment(Some(&value)).map(drop)),
            _ => checked,
        };
        if let Err(why) = checked {
            refuse!(InvalidArgument, "{why}");
        }
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, former)) => *former = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
        Ok(())
    }

    /// Adds a tensor of a shape in the order of libtorch: the bytes of its blocks.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is there already or longer than 64 bytes, a shape that a file cannot hold, or
    /// bytes of another number.
    pub fn add(
        &mut self,
        name: &str,
        block_type: BlockType,
        shape: &[i64],
        bytes: impl Into<Cow<'f, [u8]>>,
    ) -> Result<()> {
        let (tensor, bytes) = (self.new_tensor(name, block_type, shape)?, bytes.into());
        check_len(&tensor, tensor.len, bytes.len())?;
        self.tensors.push((tensor, Bytes::Here(bytes)));
        Ok(())
    }

    /// [`add`](Self::add) with bytes that are made when the file is written, one tensor after the other.
    ///
    /// # Errors
    /// As there; writing gives the error of `make`, and refuses another number of bytes.
    pub fn add_later(
        &mut self,
        name: &str,
        block_type: BlockType,
        shape: &[i64],
        make: impl Fn() -> Result<Vec<u8>> + 'f,
    ) -> Result<()> {
        let tensor = self.new_tensor(name, block_type, shape)?;
        self.tensors.push((tensor, Bytes::Later(Box::new(make))));
        Ok(())
    }

    fn new_tensor(&self, name: &str, block_type: BlockType, shape: &[i64]) -> Result<GgufTensor> {
        if self.tensors.iter().any(|(known, _)| known.name == name) {
            refuse!(InvalidArgument, "'{name}' is there already: use `replace`");
        }
        GgufTensor::new(name, block_type, shape.to_vec())
            .map_err(|why| refusal!(InvalidArgument, "{why}"))
    }

    /// Replaces bytes of a tensor, from the byte `start` of it on. Its name, type and shape stay.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such tensor, or it ends before.
    pub fn replace(&mut self, name: &str, start: usize, bytes: &[u8]) -> Result<()> {
        let Some((tensor, former)) = self.tensors.iter_mut().find(|(known, _)| known.name == name)
        else {
            refuse!(InvalidArgument, "there is no tensor '{name}' to replace");
        };
        let end = start.checked_add(bytes.len()).filter(|end| *end <= tensor.len);
        let Some(end) = end else {
            return check_len(tensor, tensor.len.saturating_sub(start), bytes.len());
        };
        let mut whole = former.get()?.into_owned();
        whole[start..end].copy_from_slice(bytes);
        *former = Bytes::Here(whole.into());
        Ok(())
    }

    /// Replaces a tensor by one of another type and the same name, shape and place in the list.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such tensor, its shape is none of the type, or the bytes are of another number.
    pub fn retype(
        &mut self,
        name: &str,
        block_type: BlockType,
        bytes: impl Into<Cow<'f, [u8]>>,
    ) -> Result<()> {
        let Some((tensor, former)) = self.tensors.iter_mut().find(|(known, _)| known.name == name)
        else {
            refuse!(InvalidArgument, "there is no tensor '{name}' to replace");
        };
        let new = match GgufTensor::new(name, block_type, tensor.shape.clone()) {
            Ok(new) => new,
            Err(why) => refuse!(InvalidArgument, "{why}"),
        };
        let bytes = bytes.into();
        check_len(&new, new.len, bytes.len())?;
        (*tensor, *former) = (new, Bytes::Here(bytes));
        Ok(())
    }

    /// Writes the file, whole or not at all: a file that stands there is replaced at once. `wrote` gets numbers of
    /// bytes as they are written.
    ///
    /// # Errors
    /// `Io`, `MissingFile`, as [`SavedAdapter`](crate::SavedAdapter)'s files.
    pub fn write_with(&self, path: impl AsRef<Path>, wrote: impl FnMut(u64)) -> Result<()> {
        self.write_if(path, wrote, |_| Ok(()))
    }

    /// [`write_with`](Self::write_with) if `check` accepts the whole file, which gets it at another path.
    ///
    /// # Errors
    /// As there, and that of `check`.
    pub fn write_if<E: From<Error>>(
        &self,
        path: impl AsRef<Path>,
        mut wrote: impl FnMut(u64),
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = path.as_ref();
        let failed = |e| Error::io("write", path, e);
        atomic::write_one(path, |out| self.write_to(out, &mut wrote, &failed), check)
    }

    /// [`write_with`](Self::write_with) without progress.
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        self.write_with(path, |_| ())
    }

    /// The bytes of the file.
    pub fn len(&self) -> u64 {
        let (header, alignment) = (self.header().len() as u64, self.alignment());
        let tensors = self.tensors.iter().map(|(tensor, _)| tensor.len as u64);
        tensors.fold(header, |all, len| all.next_multiple_of(alignment) + len)
    }

    /// True if there are neither metadata nor tensors.
    pub fn is_empty(&self) -> bool {
        self.metadata.is_empty() && self.tensors.is_empty()
    }

    fn alignment(&self) -> u64 {
        let value = self.metadata.iter().find(|(key, _)| key == "general.alignment");
        // `set` and the reader have checked it.
        alignment(value.map(|(_, value)| value)).unwrap_or(1) as u64
    }

    fn write_to(
        &self,
        out: &mut dyn Write,
        wrote: &mut dyn FnMut(u64),
        failed: &dyn Fn(io::Error) -> Error,
    ) -> Result<()> {
        const PIECE: usize = 4 << 20;
        let (header, alignment) = (self.header(), self.alignment());
        out.write_all(&header).map_err(failed)?;
        wrote(header.len() as u64);
        let mut at = header.len() as u64;
        for (tensor, bytes) in &self.tensors {
            let padding = at.next_multiple_of(alignment) - at;
            io::copy(&mut io::Read::take(io::repeat(0), padding), out).map_err(failed)?;
            wrote(padding);
            let bytes = bytes.get()?;
            check_len(tensor, tensor.len, bytes.len())?;
            for piece in bytes.chunks(PIECE) {
                out.write_all(piece).map_err(failed)?;
                wrote(piece.len() as u64);
            }
            at += padding + bytes.len() as u64;
        }
        Ok(())
    }

    /// Everything before the tensors' bytes.
    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for (key, value) in &self.metadata {
            text(&mut out, key);
            out.extend(value.value_type().number().to_le_bytes());
            value.encode(&mut out);
        }
        let (alignment, mut start) = (self.alignment(), 0_u64);
        for (tensor, _) in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                out.extend((*size as u64).to_le_bytes());
            }
            out.extend(tensor.block_type.number().to_le_bytes());
            out.extend(start.to_le_bytes());
            start = (start + tensor.len as u64).next_multiple_of(alignment);
        }
        out
    }
}

fn check_len(tensor: &GgufTensor, expected: usize, found: usize) -> Result<()> {
    if expected != found {
        refuse!(
            InvalidArgument,
            "{found} bytes for '{}' of type {} and shape {:?}, expected {expected}",
            tensor.name,
            tensor.block_type,
            tensor.shape
        );
    }
    Ok(())
}
