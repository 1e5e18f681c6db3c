//! A GGUF file that is open.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::cursor::Cursor;
use super::magic;
use super::metadata::{self, Metadata};
use super::tensors::{self, GgufTensor};
use crate::error::{refusal, refuse, Result};
use crate::quantised::Quantised;
use crate::storage::mapped::MappedFile;

/// A GGUF file: its metadata, and its tensors as they are asked for.
#[derive(Debug)]
#[doc(alias = "GGUFReader")]
pub struct GgufFile {
    path: Arc<Path>,
    file: Arc<MappedFile>,
    version: u32,
    alignment: usize,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    places: HashMap<String, usize>,
    /// Made when blocks are asked for.
    map: OnceCell<Option<Tensor>>,
}

impl GgufFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// `CorruptFile` for a file that is no whole GGUF file, `DuplicateKey` for two entries of one name, `Unsupported`
    /// for other versions than 2 and 3, big-endian files, parts of a split one and types that are not known;
    /// `MissingFile`, `Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path: Arc<Path> = path.as_ref().into();
        let file = Arc::new(MappedFile::open(&path)?);
        let mut cursor = Cursor::new(&path, &file);
        magic::check(&mut cursor)?;
        let version = version(&mut cursor)?;
        let tensor_count = tensors::count(&mut cursor)?;
        let entries = Metadata::count(&mut cursor)?;
        let metadata = Metadata::read(&mut cursor, entries, &file, &path)?;
        check_whole(&metadata, &path)?;
        let alignment = metadata::alignment(metadata.get("general.alignment"));
        let alignment = alignment.map_err(|why| cursor.refuse(why))?;
        let mut tensors = tensors::read(&mut cursor, tensor_count)?;
        let mut places = HashMap::new();
        for (place, tensor) in tensors.iter().enumerate() {
            if places.insert(tensor.name.clone(), place).is_some() {
                refuse!(
                    DuplicateKey,
                    "'{}' has the tensor '{}' twice: make it again, or take another file",
                    path.display(),
                    tensor.name
                );
            }
        }
        // A file is shorter than 2^63 bytes and so is the alignment, so that this does not overflow.
        let data = cursor.at().next_multiple_of(alignment);
        tensors::place(&mut tensors, &cursor, data, file.len(), alignment)?;
        Ok(GgufFile {
            path,
            file,
            version,
            alignment,
            metadata,
            tensors,
            places,
            map: OnceCell::new(),
        })
    }

    /// The path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The number of bytes that places of tensors are multiples of.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn find(&self, name: &str) -> Option<&GgufTensor> {
        Some(&self.tensors[*self.places.get(name)?])
    }

    /// The bytes of a tensor of this file.
    ///
    /// # Errors
    /// `InvalidArgument` for a tensor of another file whose place is not in this one.
    pub fn bytes(&self, tensor: &GgufTensor) -> Result<&[u8]> {
        let end = tensor.start.checked_add(tensor.len);
        end.and_then(|end| self.file.get(tensor.start..end)).ok_or_else(|| {
            refusal!(
                InvalidArgument,
                "'{}' is not a tensor of '{}'",
                tensor.name,
                self.path.display()
            )
        })
    }

    /// A tensor in its blocks, on the CPU: a view of the file's map, or a copy of its bytes where the system cannot map
    /// it or its place is not aligned.
    ///
    /// # Errors
    /// `Unsupported` for a type that is not implemented, which the error names; `OutOfMemory`.
    pub fn blocks(&self, tensor: &GgufTensor) -> Result<Quantised> {
        tensor.block_type.check_readable(&tensor.name)?;
        let bytes = self.bytes(tensor)?;
        let (start, len) = (tensor.start as i64, tensor.len as i64);
        // Numbers of several bytes are viewed as such.
        let map = self.map().filter(|_| tensor.start.is_multiple_of(8));
        let data = match map {
            Some(map) => map.f_narrow(0, start, len)?,
            None => Tensor::f_from_data_size(bytes, &[len], Kind::Uint8)?,
        };
        Quantised::new(&data, &tensor.shape, tensor.block_type)
    }

    /// The whole file as a copy-on-write map of bytes.
    fn map(&self) -> Option<&Tensor> {
        let options = (Kind::Uint8, Device::Cpu);
        let map = || {
            let length = i64::try_from(self.file.len()).ok()?;
            Tensor::f_from_file(self.path.to_str()?, false, length, options).ok()
        };
        self.map.get_or_init(map).as_ref()
    }

    /// The weights of a tensor, on the CPU: those in blocks in f32, others in their own kind.
    ///
    /// # Errors
    /// As [`blocks`](Self::blocks).
    pub fn tensor(&self, tensor: &GgufTensor) -> Result<Tensor> {
        if let Some(kind) = tensor.block_type.kind() {
            return Ok(Tensor::f_from_data_size(self.bytes(tensor)?, &tensor.shape, kind)?);
        }
        self.blocks(tensor)?.dequantise(Kind::Float)
    }
}

/// The version after the first four bytes.
fn version(cursor: &mut Cursor) -> Result<u32> {
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(cursor.unsupported(
            "a big-endian GGUF file, expected a little-endian one: convert it with `gguf-convert-endian FILE little`",
        )),
        _ => Err(cursor.unsupported(format!(
            "version {version} of GGUF, expected 2 or 3: make the file again with a present llama.cpp"
        ))),
    }
}

/// Refuses a part of a split file.
fn check_whole(metadata: &Metadata, path: &Path) -> Result<()> {
    match metadata.integer("split.count")? {
        Some(2..) => refuse!(
            Unsupported,
            "'{}' is one of {} parts of a split file: join them with `llama-gguf-split --merge {} whole.gguf`, with the \
             first part",
            path.display(),
            metadata.integer("split.count")?.unwrap_or_default(),
            path.display()
        ),
        _ => Ok(()),
    }
}
