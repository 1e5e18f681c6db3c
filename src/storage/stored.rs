//! A safetensors file whose header has been read; its tensors are read on request.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use super::regular;
use super::safetensors::{check_finite, kind_of, to_tensor, views};
use crate::error::{refusal, refuse, Error, Result};
use crate::storage::mapped::MappedFile;

/// The place of a tensor in its file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
    /// The first byte, from the start of the file.
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// A safetensors file whose tensors are read one at a time.
#[derive(Debug)]
pub(crate) struct StoredTensors {
    pub(crate) path: PathBuf,
    /// Sorted by their keys.
    pub(crate) tensors: Vec<Stored>,
}

impl Stored {
    /// The `count` tensors that are concatenated in this one along the first dimension.
    pub(crate) fn parts(&self, count: usize, path: &Path) -> Result<Vec<Stored>> {
        if count == 1 {
            return Ok(vec![self.clone()]);
        }
        let rows = self.shape.first().copied().unwrap_or(0);
        if rows % count as i64 != 0 {
            refuse!(
                ShapeMismatch,
                "'{}' in '{}' has shape {:?}, expected {count} tensors of equal size along dimension 0",
                self.key,
                path.display(),
                self.shape
            );
        }
        let mut part = self.clone();
        part.shape[0] = rows / count as i64;
        part.len = self.len / count as u64;
        let at = |i: usize| Stored { start: self.start + i as u64 * part.len, ..part.clone() };
        Ok((0..count).map(at).collect())
    }
}

impl StoredTensors {
    /// Reads the header and checks it against the length of the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes = MappedFile::open(path)?;
        let begin = bytes.as_ptr() as usize;
        let stored = |(key, view): (String, TensorView)| Stored {
            key,
            dtype: view.dtype(),
            shape: view.shape().iter().map(|size| *size as i64).collect(),
            start: (view.data().as_ptr() as usize - begin) as u64,
            len: view.data().len() as u64,
        };
        let tensors = views(&bytes, path)?.into_iter().map(stored).collect();
        Ok(StoredTensors { path: path.to_owned(), tensors })
    }

    /// Reads one tensor to the CPU, in the kind that it has in the file.
    pub(crate) fn read(&self, stored: &Stored) -> Result<Tensor> {
        let bytes = self.bytes(stored)?;
        to_tensor(&stored.key, stored.dtype, &stored.shape, &bytes, &self.path)
    }

    /// The whole file as a copy-on-write map of bytes; `None` if the system cannot map it.
    pub(crate) fn mapped(&self) -> Option<Tensor> {
        let length = i64::try_from(std::fs::metadata(&self.path).ok()?.len()).ok()?;
        let options = (Kind::Uint8, Device::Cpu);
        Tensor::f_from_file(self.path.to_str()?, false, length, options).ok()
    }

    /// A tensor as a view of the map of [`mapped`](Self::mapped), or a copy if it is not aligned there.
    pub(crate) fn view(&self, map: &Tensor, stored: &Stored) -> Result<Tensor> {
        let (start, len) = (stored.start as i64, stored.len as i64);
        match kind_of(stored.dtype) {
            Some(kind) if start % kind.elt_size_in_bytes() as i64 == 0 && len > 0 => {
                Ok(map.f_narrow(0, start, len)?.f_view_dtype(kind)?.f_view(&stored.shape[..])?)
            }
            _ => self.read(stored),
        }
    }

    /// True if a tensor of another file is the same, byte for byte.
    pub(crate) fn is_same(&self, own: &Stored, other: &Self, its: &Stored) -> Result<bool> {
        if (own.dtype, &own.shape) != (its.dtype, &its.shape) {
            return Ok(false);
        }
        let (a, b) = (MappedFile::open(&self.path)?, MappedFile::open(&other.path)?);
        let bytes = |stored: &Stored| stored.start as usize..(stored.start + stored.len) as usize;
        Ok(a.get(bytes(own)) == b.get(bytes(its)))
    }

    /// Refuses a tensor that holds NaN or infinity.
    pub(crate) fn check_finite(&self, stored: &Stored) -> Result<()> {
        check_finite(&stored.key, stored.dtype, &self.bytes(stored)?, &self.path)
    }

    fn bytes(&self, stored: &Stored) -> Result<Vec<u8>> {
        let failed = |e| Error::io("read", &self.path, e);
        let mut file = regular::open(&self.path)?;
        file.seek(SeekFrom::Start(stored.start)).map_err(failed)?;
        let length = usize::try_from(stored.len).map_err(|e| {
            refusal!(Unsupported, "'{}' does not fit into memory", stored.key).caused_by(e)
        })?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|e| failed(e.into()))?;
        file.take(stored.len).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() != length {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }
}
