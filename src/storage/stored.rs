//! A safetensors or GGUF file whose header has been read; its tensors are read on request.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use super::gguf::{GgufFile, GgufTensor};
use super::safetensors::{check_finite, dtype_of, kind_of, to_tensor, views};
use crate::error::{refusal, refuse, Error, Result};
#[cfg(feature = "models")]
use crate::quantised::BlockType;
use crate::quantised::Quantised;
use crate::regular;
use crate::storage::mapped::MappedFile;

/// The place of a tensor in its file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: String,
    /// That of its values; those in blocks are read as f32.
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
    /// The first byte, from the start of the file.
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// A safetensors or GGUF file whose tensors are read one at a time.
#[derive(Debug)]
pub(crate) struct StoredTensors {
    pub(crate) path: PathBuf,
    /// Sorted by their keys.
    pub(crate) tensors: Vec<Stored>,
    gguf: Option<GgufFile>,
}

impl Stored {
    /// True if each value takes so many bytes.
    fn is_of(&self, bytes: usize) -> bool {
        let values = self.shape.iter().try_fold(1_u64, |all, size| all.checked_mul(*size as u64));
        values.and_then(|values| values.checked_mul(bytes as u64)) == Some(self.len)
    }

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
        Ok(StoredTensors { path: path.to_owned(), tensors, gguf: None })
    }

    /// Opens a GGUF file, whose tensors stay in its order.
    pub(crate) fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let stored = |tensor: &GgufTensor| {
            let kind = tensor.block_type.kind().unwrap_or(Kind::Float);
            let dtype = dtype_of(kind).ok_or_else(|| {
                refusal!(
                    KindMismatch,
                    "'{}' in '{}' has kind {kind:?}, expected a kind of weights",
                    tensor.name,
                    path.display()
                )
            })?;
            tensor.block_type.check_readable(&tensor.name)?;
            let (start, len) = (tensor.start as u64, tensor.len as u64);
            let (key, shape) = (tensor.name.clone(), tensor.shape.clone());
            Ok(Stored { key, dtype, shape, start, len })
        };
        let tensors = file.tensors().iter().map(stored).collect::<Result<_>>()?;
        Ok(StoredTensors { path: path.to_owned(), tensors, gguf: Some(file) })
    }

    /// The GGUF file, if it is one.
    pub(crate) fn gguf(&self) -> Option<&GgufFile> {
        self.gguf.as_ref()
    }

    /// A tensor of the GGUF file, or a part of one; `None` for safetensors.
    fn in_gguf(&self, stored: &Stored) -> Option<(&GgufFile, GgufTensor)> {
        let file = self.gguf.as_ref()?;
        let whole = file.find(&stored.key)?;
        let (start, len) = (stored.start as usize, stored.len as usize);
        let part = GgufTensor { shape: stored.shape.clone(), start, len, ..whole.clone() };
        Some((file, part))
    }

    fn in_blocks(&self, stored: &Stored) -> Option<(&GgufFile, GgufTensor)> {
        self.in_gguf(stored).filter(|(_, part)| part.block_type.kind().is_none())
    }

    /// The type of one tensor's blocks; `None` if it is not quantised.
    #[cfg(feature = "models")]
    pub(crate) fn block_type(&self, stored: &Stored) -> Option<BlockType> {
        self.in_blocks(stored).map(|(_, part)| part.block_type)
    }

    /// The blocks of one tensor, on the CPU; `None` if it is not quantised.
    pub(crate) fn quantised(&self, stored: &Stored) -> Result<Option<Quantised>> {
        self.in_blocks(stored).map(|(file, part)| file.blocks(&part)).transpose()
    }

    /// Reads one tensor to the CPU, in the kind that it has in the file; one in blocks as f32.
    pub(crate) fn read(&self, stored: &Stored) -> Result<Tensor> {
        if let Some((file, part)) = self.in_gguf(stored) {
            return file.tensor(&part);
        }
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
            // Blocks take other numbers of bytes.
            Some(kind)
                if start % kind.elt_size_in_bytes() as i64 == 0
                    && len > 0
                    && stored.is_of(kind.elt_size_in_bytes()) =>
            {
                Ok(map.f_narrow(0, start, len)?.f_view_dtype(kind)?.f_view(&stored.shape[..])?)
            }
            _ => self.read(stored),
        }
    }

    /// True if a tensor of another file is the same, byte for byte.
    pub(crate) fn is_same(&self, own: &Stored, other: &Self, its: &Stored) -> Result<bool> {
        let block_type = |file: &Self, stored| file.in_gguf(stored).map(|(_, it)| it.block_type);
        if (own.dtype, &own.shape) != (its.dtype, &its.shape)
            || block_type(self, own) != block_type(other, its)
        {
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
