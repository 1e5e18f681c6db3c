//! The metadata of a GGUF file: keys and values of 13 types.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::cursor::Cursor;
use super::value::{MetadataArray, MetadataValue, Place, Source};
use crate::error::{refuse, Result};
use crate::storage::mapped::MappedFile;

/// The longest key, in bytes.
const LONGEST: usize = (1 << 16) - 1;

/// The alignment of tensors in a file that does not say another one.
const ALIGNMENT: usize = 32;

/// A key and the type of its value take so many bytes at least, with one of the value.
const LEAST: u64 = 8 + 4 + 1;

/// The metadata of a GGUF file, in the order of the file.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: Arc<Path>,
    entries: Vec<(String, MetadataValue)>,
    places: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn read(
        cursor: &mut Cursor,
        count: u64,
        file: &Arc<MappedFile>,
        path: &Arc<Path>,
    ) -> Result<Self> {
        let source = &Source::File(file.clone());
        let mut metadata =
            Metadata { path: path.clone(), entries: Vec::new(), places: HashMap::new() };
        for number in 0..count {
            let key = cursor.text(&format!("key {number} of the metadata"))?;
            check_key(key).map_err(|why| cursor.refuse(why))?;
            let value = Place { source, path }.typed(cursor, &format!("'{key}'"))?;
            let place = metadata.entries.len();
            if metadata.places.insert(key.to_owned(), place).is_some() {
                refuse!(
                    DuplicateKey,
                    "'{}' has the metadata '{key}' twice: make it again, or take another file",
                    path.display()
                );
            }
            metadata.entries.push((key.to_owned(), value));
        }
        Ok(metadata)
    }

    /// A count of entries, which the file is long enough for.
    pub(super) fn count(cursor: &mut Cursor) -> Result<u64> {
        cursor.count(LEAST, "the number of entries of the metadata")
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        Some(&self.entries[*self.places.get(key)?].1)
    }

    /// A string; `None` if the key is not there.
    ///
    /// # Errors
    /// `InvalidConfig` for a value of another type. So are the errors of the methods below.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.one(key, "a string", |value| match value {
            MetadataValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number of any type.
    ///
    /// # Errors
    /// As [`str`](Self::str), and for 2^63 and above.
    pub fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.one(key, "a whole number below 2^63", integer)
    }

    /// A number of any type.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.one(key, "a number", number)
    }

    /// True or false.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.one(key, "true or false", flag)
    }

    /// An array, whose values stay in the file.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn array(&self, key: &str) -> Result<Option<&MetadataArray>> {
        self.one(key, "an array", |value| match value {
            MetadataValue::Array(array) => Some(array),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// As [`str`](Self::str), and `CorruptFile` for a string that is not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.all(key, "strings", |value| match value {
            MetadataValue::String(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// An array of whole numbers of any type.
    ///
    /// # Errors
    /// As [`integer`](Self::integer).
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.all(key, "whole numbers below 2^63", integer)
    }

    /// An array of numbers of any type.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.all(key, "numbers", number)
    }

    /// An array of true and false.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.all(key, "true and false", flag)
    }

    fn one<'m, T>(
        &'m self,
        key: &str,
        expected: &str,
        read: impl Fn(&'m MetadataValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => self.refuse(key, expected, value),
        }
    }

    fn all<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&MetadataValue) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut all = Vec::with_capacity(array.len());
        for value in array.iter() {
            let value = value?;
            match read(&value) {
                Some(value) => all.push(value),
                None => return self.refuse(key, &format!("an array of {expected}"), value),
            }
        }
        Ok(Some(all))
    }

    fn refuse<T>(&self, key: &str, expected: &str, found: impl std::fmt::Debug) -> Result<T> {
        refuse!(
            InvalidConfig,
            "'{key}' in the metadata of '{}' is {found:?}, expected {expected}",
            self.path.display()
        )
    }
}

/// The alignment of tensors, by the value of `general.alignment`; otherwise the reason why it is none.
pub(super) fn alignment(value: Option<&MetadataValue>) -> Result<usize, String> {
    match value {
        None => Ok(ALIGNMENT),
        Some(MetadataValue::U32(alignment)) if alignment.is_power_of_two() => {
            Ok(*alignment as usize)
        }
        Some(other) => {
            Err(format!("'general.alignment' is {other:?}, expected a power of two as U32"))
        }
    }
}

/// The reason why a key cannot be one.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > LONGEST {
        let len = key.len();
        return Err(format!("a key of the metadata has {len} bytes, expected 1 to {LONGEST}"));
    }
    Ok(())
}

fn integer(value: &MetadataValue) -> Option<i64> {
    match *value {
        MetadataValue::U8(value) => Some(value.into()),
        MetadataValue::I8(value) => Some(value.into()),
        MetadataValue::U16(value) => Some(value.into()),
        MetadataValue::I16(value) => Some(value.into()),
        MetadataValue::U32(value) => Some(value.into()),
        MetadataValue::I32(value) => Some(value.into()),
        MetadataValue::U64(value) => value.try_into().ok(),
        MetadataValue::I64(value) => Some(value),
        _ => None,
    }
}

fn number(value: &MetadataValue) -> Option<f64> {
    match *value {
        MetadataValue::F32(value) => Some(value.into()),
        MetadataValue::F64(value) => Some(value),
        MetadataValue::U64(value) => Some(value as f64),
        ref other => integer(other).map(|value| value as f64),
    }
}

fn flag(value: &MetadataValue) -> Option<bool> {
    match *value {
        MetadataValue::Bool(value) => Some(value),
        _ => None,
    }
}
