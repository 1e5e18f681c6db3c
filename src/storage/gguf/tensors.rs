//! The tensors that a GGUF file lists: names, types, shapes and places, checked against the file.

use super::cursor::Cursor;
use crate::error::Result;
use crate::quantised::BlockType;

/// The longest name of a tensor, in bytes.
const LONGEST: usize = 64;

/// The most dimensions.
const DIMENSIONS: u32 = 4;

/// A name, the number of dimensions, a type and a place take so many bytes at least.
const LEAST: u64 = 8 + 4 + 4 + 8;

/// A tensor in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GgufTensor {
    /// Its name, such as `blk.0.attn_norm.weight`.
    pub name: String,
    /// The type of its blocks.
    pub block_type: BlockType,
    /// The shape in the order of libtorch, the reverse of the file's: rows of blocks lie along the last dimension.
    pub shape: Vec<i64>,
    /// Its first byte, from the start of the file.
    pub start: usize,
    /// Its bytes.
    pub len: usize,
}

/// A count of tensors, which the file is long enough for.
pub(super) fn count(cursor: &mut Cursor) -> Result<u64> {
    cursor.count(LEAST, "the number of tensors")
}

/// Reads the list. Places count from the start of the data yet, which follows the list.
pub(super) fn read(cursor: &mut Cursor, count: u64) -> Result<Vec<GgufTensor>> {
    let mut tensors = Vec::new();
    for number in 0..count {
        tensors.push(tensor(cursor, number)?);
    }
    Ok(tensors)
}

fn tensor(cursor: &mut Cursor, number: u64) -> Result<GgufTensor> {
    let name = cursor.text(&format!("the name of tensor {number}"))?;
    let thing = format!("'{name}'");
    let dimensions = cursor.u32(&thing)?;
    if dimensions > DIMENSIONS {
        return Err(cursor.refuse(format!(
            "{thing} has {dimensions} dimensions, expected at most {DIMENSIONS}"
        )));
    }
    let mut sizes = Vec::new();
    for _ in 0..dimensions {
        sizes.push(cursor.u64(&thing)?);
    }
    let (type_number, start) = (cursor.u32(&thing)?, cursor.u64(&thing)?);
    let block_type = BlockType::from_number(type_number).ok_or_else(|| {
        cursor.unsupported(format!(
            "{thing} has type {type_number}, which is not known here (later than this version, or removed from llama.cpp): \
             quantise the model again, or take a file of another type such as Q8_0 or Q4_K_M"
        ))
    })?;
    let shape: Vec<i64> =
        sizes.iter().rev().map(|size| i64::try_from(*size).unwrap_or(-1)).collect();
    let tensor = GgufTensor::new(name, block_type, shape);
    let mut tensor = tensor.map_err(|why| cursor.refuse(why))?;
    tensor.start = usize::try_from(start).unwrap_or(usize::MAX);
    Ok(tensor)
}

impl GgufTensor {
    /// A tensor that a file can hold, at no place yet; otherwise the reason why it cannot.
    pub(super) fn new(name: &str, block_type: BlockType, shape: Vec<i64>) -> Result<Self, String> {
        if name.is_empty() || name.len() > LONGEST {
            let len = name.len();
            return Err(format!("the name '{name}' has {len} bytes, expected 1 to {LONGEST}"));
        }
        if shape.len() > DIMENSIONS as usize {
            let found = shape.len();
            return Err(format!("'{name}' has {found} dimensions, expected at most {DIMENSIONS}"));
        }
        let unfit = || {
            format!(
                "'{name}' of type {block_type} has shape {shape:?}, expected sizes of at least 1, and together what a file \
                 can hold"
            )
        };
        if shape.iter().any(|size| *size < 1) {
            return Err(unfit());
        }
        let width = shape.last().copied().unwrap_or(1) as u64;
        if !width.is_multiple_of(block_type.block_len() as u64) {
            return Err(format!(
                "'{name}' of type {block_type} has rows of {width} weights, expected a multiple of {}",
                block_type.block_len()
            ));
        }
        let product = |all: u64, size: &i64| all.checked_mul(*size as u64);
        let weights = shape.iter().try_fold(1, product).and_then(|all| i64::try_from(all).ok());
        let row = block_type.row_bytes(width);
        let len = row.and_then(|row| shape.iter().rev().skip(1).try_fold(row, product));
        let len = len.and_then(|len| isize::try_from(len).ok());
        let len = len.filter(|_| weights.is_some()).ok_or_else(unfit)? as usize;
        Ok(GgufTensor { name: name.to_owned(), block_type, shape, start: 0, len })
    }
}

/// Moves the places to where the data starts, and checks that they are aligned, in the file, and apart.
pub(super) fn place(
    tensors: &mut [GgufTensor],
    cursor: &Cursor,
    data: usize,
    end: usize,
    alignment: usize,
) -> Result<()> {
    for tensor in tensors.iter_mut() {
        let (name, start) = (&tensor.name, tensor.start);
        if start % alignment != 0 {
            return Err(cursor.refuse(format!(
                "'{name}' starts at byte {start} of the data, expected a multiple of the alignment {alignment}"
            )));
        }
        let inside = data.checked_add(start).filter(|start| {
            start.checked_add(tensor.len).is_some_and(|tensor_end| tensor_end <= end)
        });
        tensor.start = inside.ok_or_else(|| {
            cursor.refuse(format!(
                "'{name}' takes {} bytes from byte {start} of the data on, which starts at byte {data}, but the file ends at \
                 byte {end}: was it cut off? Copy it again",
                tensor.len
            ))
        })?;
    }
    let mut by_place: Vec<&GgufTensor> = tensors.iter().collect();
    by_place.sort_by_key(|tensor| tensor.start);
    for pair in by_place.windows(2) {
        if pair[0].start + pair[0].len > pair[1].start {
            return Err(cursor.refuse(format!(
                "'{}' and '{}' overlap: bytes {} to {}, and from {} on",
                pair[0].name,
                pair[1].name,
                pair[0].start,
                pair[0].start + pair[0].len,
                pair[1].start
            )));
        }
    }
    Ok(())
}
