//! Safetensors files: bytes to tensors and back.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use tch::{Device, Kind, Tensor};

use crate::error::{refusal, refuse, Error, Result};
use crate::regular;
use crate::storage::unique_keys::{Strict, DUPLICATE};

/// The longest name of a tensor, in bytes.
const LONGEST: usize = 1 << 16;

/// The file that Python's `safetensors.torch.save_file` writes for these tensors, byte for byte. On the host nothing is
/// held beside it but those tensors that were not there, or not contiguous.
pub(crate) fn to_bytes(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let mut views = Vec::with_capacity(tensors.len());
    for (key, tensor) in tensors {
        if tensor.is_sparse() || tensor.is_mkldnn() {
            refuse!(
                UnsupportedVariable,
                "'{key}' is not dense, which a safetensors file cannot hold: save its `to_dense`"
            );
        }
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let kind = tensor.f_kind()?;
        let dtype = dtype_of(kind).ok_or_else(|| {
            refusal!(
                KindMismatch,
                "'{key}' has kind {kind:?}, which a safetensors file cannot hold"
            )
        })?;
        let shape = tensor.size().iter().map(|d| *d as usize).collect();
        views.push((key.as_str(), OnHost { tensor, dtype, shape }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata))
        .map_err(|e| refusal!(CorruptFile, "cannot build a safetensors file").caused_by(e))
}

/// A dense, contiguous tensor on the CPU.
struct OnHost {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for OnHost {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (start, length) = (self.tensor.data_ptr().cast::<u8>(), self.data_len());
        if length == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: a contiguous tensor on the CPU has its elements in a row from there on, and lives as long as this.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(start, length) })
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// The elements in row-major order.
pub(crate) fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_contiguous()?;
    let numel = tensor.numel();
    let mut bytes = vec![0u8; numel * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, numel)?;
    Ok(bytes)
}

/// Every tensor of a file, on the CPU, in the order of the keys. All values must be finite.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let mut bytes = Vec::new();
    let read = regular::open(path)?.read_to_end(&mut bytes);
    read.map_err(|e| Error::io("read", path, e))?;
    let read = |(key, view): (String, TensorView)| {
        check_finite(&key, view.dtype(), view.data(), path)?;
        let shape: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
        let tensor = to_tensor(&key, view.dtype(), &shape, view.data(), path)?;
        Ok((key, tensor))
    };
    views(&bytes, path)?.into_iter().map(read).collect()
}

/// The tensors of a file as views of its bytes, sorted by their keys.
pub(crate) fn views<'a>(bytes: &'a [u8], path: &Path) -> Result<Vec<(String, TensorView<'a>)>> {
    check_header(bytes, path)?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        refusal!(
            CorruptFile,
            "'{}' is not a complete safetensors file ({} bytes): was it cut off? Copy or save it again",
            path.display(),
            bytes.len()
        )
        .caused_by(e)
    })?;
    let mut views = file.tensors();
    let damaged = |(key, view): &&(String, TensorView)| {
        key.len() > LONGEST || view.shape().iter().any(|size| i64::try_from(*size).is_err())
    };
    if let Some((key, view)) = views.iter().find(damaged) {
        refuse!(
            CorruptFile,
            "'{key}' of shape {:?} in '{}': expected a name of at most {LONGEST} bytes and sizes below 2^63",
            view.shape(),
            path.display()
        );
    }
    views.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(views)
}

pub(crate) fn to_tensor(
    key: &str,
    dtype: Dtype,
    shape: &[i64],
    bytes: &[u8],
    path: &Path,
) -> Result<Tensor> {
    let kind = kind_of(dtype).ok_or_else(|| {
        refusal!(
            KindMismatch,
            "'{key}' in '{}' has kind {dtype:?}, expected a floating-point or integer kind of libtorch",
            path.display()
        )
    })?;
    Ok(Tensor::f_from_data_size(bytes, shape, kind)?)
}

/// Refuses a header with a duplicate key, of which the reader would silently keep one.
fn check_header(bytes: &[u8], path: &Path) -> Result<()> {
    let header = bytes
        .first_chunk::<8>()
        .and_then(|len| usize::try_from(u64::from_le_bytes(*len)).ok())
        .and_then(|len| bytes.get(8..)?.get(..len));
    // The reader checks and reports everything else about the header.
    let Some(header) = header else { return Ok(()) };
    match serde_json::from_slice::<Strict>(header) {
        Err(e) if e.to_string().contains(DUPLICATE) => {
            Err(refusal!(DuplicateKey, "two tensors of one name in '{}'", path.display())
                .caused_by(e))
        }
        _ => Ok(()),
    }
}

/// Refuses NaN and infinity. It tests the bits, since a pass of libtorch per tensor takes longer than reading the file.
pub(crate) fn check_finite(key: &str, dtype: Dtype, data: &[u8], path: &Path) -> Result<()> {
    let bad = match dtype {
        Dtype::F32 => {
            data.chunks_exact(4).filter(|b| b[3] & 0x7f == 0x7f && b[2] & 0x80 != 0).count()
        }
        Dtype::F64 => {
            data.chunks_exact(8).filter(|b| b[7] & 0x7f == 0x7f && b[6] & 0xf0 == 0xf0).count()
        }
        Dtype::BF16 => {
            data.chunks_exact(2).filter(|b| b[1] & 0x7f == 0x7f && b[0] & 0x80 != 0).count()
        }
        Dtype::F16 => data.chunks_exact(2).filter(|b| b[1] & 0x7c == 0x7c).count(),
        _ => 0,
    };
    if bad > 0 {
        refuse!(
            NonFinite,
            "'{key}' in '{}' holds {bad} values that are NaN or infinite: the run that wrote it had diverged",
            path.display()
        );
    }
    Ok(())
}

const KINDS: [(Kind, Dtype); 9] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

pub(crate) fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(k, _)| *k == kind).map(|(_, dtype)| *dtype)
}

pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(_, d)| *d == dtype).map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_any_strides_and_sizes_come_back_and_what_is_not_dense_is_named() {
        let ramp = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([4, 6]);
        let tensors = [
            ("all".to_owned(), ramp.shallow_clone()),
            ("columns".to_owned(), ramp.slice(1, 1, 6, 2)),
            ("none".to_owned(), ramp.narrow(0, 0, 0)),
            ("turned".to_owned(), ramp.tr().to_kind(Kind::BFloat16)),
            ("one".to_owned(), Tensor::from(7_i64)),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tensors");
        std::fs::write(&path, to_bytes(&tensors).unwrap()).unwrap();
        let back: HashMap<String, Tensor> = read(&path).unwrap().into_iter().collect();
        for (key, tensor) in &tensors {
            assert_eq!((back[key].size(), back[key].kind()), (tensor.size(), tensor.kind()));
            assert_eq!(&back[key], tensor, "{key}");
        }
        let sparse = ramp.to_sparse(None, None::<&[i64]>, 0);
        let error = to_bytes(&[("sparse".to_owned(), sparse)]).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::UnsupportedVariable);
        assert!(error.to_string().contains("'sparse'"), "{error}");
    }
}
