//! The values of metadata in a GGUF file.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use super::cursor::Cursor;
use crate::error::{refuse, Result};
use crate::storage::mapped::MappedFile;

/// The deepest arrays in arrays.
const DEEPEST: usize = 8;

/// The type of a value of metadata.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// In the order of their numbers in files, from 0 on.
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The number that stands for it in a file.
    pub fn number(self) -> u32 {
        Self::ALL.iter().position(|known| *known == self).unwrap_or_default() as u32
    }

    fn read(cursor: &mut Cursor, thing: &str) -> Result<Self> {
        let number = cursor.u32(thing)?;
        let found = usize::try_from(number).ok().and_then(|number| Self::ALL.get(number));
        found.copied().ok_or_else(|| {
            cursor.refuse(format!("{thing} has type {number}, expected 0 (U8) to 12 (F64)"))
        })
    }

    /// The bytes that a value takes at least, and its bytes if all take the same.
    fn size(self) -> (u64, Option<u64>) {
        let same = |bytes| (bytes, Some(bytes));
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => same(1),
            ValueType::U16 | ValueType::I16 => same(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => same(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => same(8),
            ValueType::String => (8, None),
            ValueType::Array => (12, None),
        }
    }
}

/// A value of metadata.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(MetadataArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// The bytes that arrays are in.
#[derive(Clone)]
pub(super) enum Source {
    File(Arc<MappedFile>),
    Own(Arc<[u8]>),
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Source::File(file) => file,
            Source::Own(bytes) => bytes,
        }
    }
}

/// An array of metadata. That of a file stays there: its values are read when they are asked for.
#[derive(Clone)]
pub struct MetadataArray {
    source: Source,
    path: Arc<Path>,
    value_type: ValueType,
    len: u64,
    start: usize,
    end: usize,
}

impl MetadataArray {
    /// A new one, whose values are all of one type.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of another type; `CorruptFile` for arrays in arrays that are too deep to be read.
    pub fn new(value_type: ValueType, values: &[MetadataValue]) -> Result<Self> {
        let mut bytes = Vec::new();
        for value in values {
            if value.value_type() != value_type {
                refuse!(InvalidArgument, "{value:?} in an array, expected type {value_type:?}");
            }
            value.encode(&mut bytes);
        }
        let (path, len): (Arc<Path>, _) = (Path::new("a new array").into(), values.len() as u64);
        skip(&mut Cursor::new(&path, &bytes), value_type, len, 0, "an array")?;
        let end = bytes.len();
        Ok(MetadataArray {
            source: Source::Own(bytes.into()),
            path,
            value_type,
            len,
            start: 0,
            end,
        })
    }

    /// The type of its values.
    pub fn value_type(&self) -> ValueType {
        self.value_type
    }

    /// The number of its values.
    pub fn len(&self) -> usize {
        // Each value takes a byte of the file at least.
        self.len as usize
    }

    /// True if it has no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its values, one after the other.
    ///
    /// # Errors
    /// The iterator gives `CorruptFile` for a string that is not UTF-8, and ends.
    pub fn iter(&self) -> impl Iterator<Item = Result<MetadataValue>> + '_ {
        let place = Place { source: &self.source, path: &self.path };
        let mut cursor = Cursor::new(&self.path, self.raw());
        let mut left = self.len;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let value =
                place.value(&mut cursor, self.value_type, self.start, "a value of an array");
            if value.is_err() {
                left = 0;
            }
            Some(value)
        })
    }

    /// Its values as they are in the file.
    pub(super) fn raw(&self) -> &[u8] {
        &self.source[self.start..self.end]
    }
}

/// Equal types and bytes.
impl PartialEq for MetadataArray {
    fn eq(&self, other: &Self) -> bool {
        (self.value_type, self.len, self.raw()) == (other.value_type, other.len, other.raw())
    }
}

impl fmt::Debug for MetadataArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values of type {:?}", self.len, self.value_type)
    }
}

/// The file that values are read from.
pub(super) struct Place<'f> {
    pub(super) source: &'f Source,
    pub(super) path: &'f Arc<Path>,
}

impl Place<'_> {
    /// A type and a value of it.
    pub(super) fn typed(&self, cursor: &mut Cursor, thing: &str) -> Result<MetadataValue> {
        let value_type = ValueType::read(cursor, thing)?;
        self.value(cursor, value_type, 0, thing)
    }

    /// The next value; `base` is the place in the file where the bytes of the cursor start.
    fn value(
        &self,
        cursor: &mut Cursor,
        value_type: ValueType,
        base: usize,
        thing: &str,
    ) -> Result<MetadataValue> {
        Ok(match value_type {
            ValueType::U8 => MetadataValue::U8(cursor.array::<1>(thing)?[0]),
            ValueType::I8 => MetadataValue::I8(i8::from_le_bytes(cursor.array(thing)?)),
            ValueType::U16 => MetadataValue::U16(u16::from_le_bytes(cursor.array(thing)?)),
            ValueType::I16 => MetadataValue::I16(i16::from_le_bytes(cursor.array(thing)?)),
            ValueType::U32 => MetadataValue::U32(cursor.u32(thing)?),
            ValueType::I32 => MetadataValue::I32(i32::from_le_bytes(cursor.array(thing)?)),
            ValueType::F32 => MetadataValue::F32(f32::from_le_bytes(cursor.array(thing)?)),
            ValueType::Bool => MetadataValue::Bool(cursor.array::<1>(thing)?[0] != 0),
            ValueType::String => MetadataValue::String(cursor.text(thing)?.to_owned()),
            ValueType::U64 => MetadataValue::U64(cursor.u64(thing)?),
            ValueType::I64 => MetadataValue::I64(i64::from_le_bytes(cursor.array(thing)?)),
            ValueType::F64 => MetadataValue::F64(f64::from_le_bytes(cursor.array(thing)?)),
            ValueType::Array => {
                let (value_type, len) = array_head(cursor, thing)?;
                let start = base + cursor.at();
                skip(cursor, value_type, len, 0, thing)?;
                let end = base + cursor.at();
                let (source, path) = (self.source.clone(), self.path.clone());
                MetadataValue::Array(MetadataArray { source, path, value_type, len, start, end })
            }
        })
    }
}

impl MetadataValue {
    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            MetadataValue::U8(_) => ValueType::U8,
            MetadataValue::I8(_) => ValueType::I8,
            MetadataValue::U16(_) => ValueType::U16,
            MetadataValue::I16(_) => ValueType::I16,
            MetadataValue::U32(_) => ValueType::U32,
            MetadataValue::I32(_) => ValueType::I32,
            MetadataValue::F32(_) => ValueType::F32,
            MetadataValue::Bool(_) => ValueType::Bool,
            MetadataValue::String(_) => ValueType::String,
            MetadataValue::Array(_) => ValueType::Array,
            MetadataValue::U64(_) => ValueType::U64,
            MetadataValue::I64(_) => ValueType::I64,
            MetadataValue::F64(_) => ValueType::F64,
        }
    }

    /// Appends its bytes in a file, without its type.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            MetadataValue::U8(value) => out.push(*value),
            MetadataValue::I8(value) => out.extend(value.to_le_bytes()),
            MetadataValue::U16(value) => out.extend(value.to_le_bytes()),
            MetadataValue::I16(value) => out.extend(value.to_le_bytes()),
            MetadataValue::U32(value) => out.extend(value.to_le_bytes()),
            MetadataValue::I32(value) => out.extend(value.to_le_bytes()),
            MetadataValue::F32(value) => out.extend(value.to_le_bytes()),
            MetadataValue::Bool(value) => out.push((*value).into()),
            MetadataValue::String(text) => {
                out.extend((text.len() as u64).to_le_bytes());
                out.extend(text.as_bytes());
            }
            MetadataValue::Array(array) => {
                out.extend(array.value_type.number().to_le_bytes());
                out.extend(array.len.to_le_bytes());
                out.extend(array.raw());
            }
            MetadataValue::U64(value) => out.extend(value.to_le_bytes()),
            MetadataValue::I64(value) => out.extend(value.to_le_bytes()),
            MetadataValue::F64(value) => out.extend(value.to_le_bytes()),
        }
    }
}

impl From<&str> for MetadataValue {
    fn from(text: &str) -> Self {
        MetadataValue::String(text.to_owned())
    }
}

impl From<MetadataArray> for MetadataValue {
    fn from(array: MetadataArray) -> Self {
        MetadataValue::Array(array)
    }
}

/// The type of an array's values and their number, which the file is long enough for.
fn array_head(cursor: &mut Cursor, thing: &str) -> Result<(ValueType, u64)> {
    let value_type = ValueType::read(cursor, thing)?;
    let len = cursor.count(value_type.size().0, &format!("the length of {thing}"))?;
    Ok((value_type, len))
}

/// Goes past the values of an array.
fn skip(
    cursor: &mut Cursor,
    value_type: ValueType,
    len: u64,
    depth: usize,
    thing: &str,
) -> Result<()> {
    if let (_, Some(bytes)) = value_type.size() {
        // The product fits: the length was checked against the file.
        cursor.take(len * bytes, thing)?;
    } else if value_type == ValueType::String {
        for _ in 0..len {
            cursor.bytes(thing)?;
        }
    } else if depth + 1 < DEEPEST {
        for _ in 0..len {
            let (value_type, len) = array_head(cursor, thing)?;
            skip(cursor, value_type, len, depth + 1, thing)?;
        }
    } else if len > 0 {
        return Err(cursor.refuse(format!(
            "{thing} has arrays in arrays that are deeper than {DEEPEST}, which no model needs"
        )));
    }
    Ok(())
}
