//! The pictures of a row: files that it names, or bytes that it holds.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use image::RgbImage;
use ln_tuning::regular;
use serde_json::Value;

use super::columns::Columns;
use super::mentions::Mentions;
use super::shape::Fields;
use crate::pictures::{head, picture};
use crate::records::keys::is_empty;
use crate::records::{shortened, shown, Row};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picture {
    File(PathBuf),
    /// A picture in the data file itself, as in a Parquet file of datasets.
    Bytes(Vec<u8>),
}

/// The key of a row's pictures.
const IMAGES: &str = "images";

/// Keys of an object that give a picture: transformers' and, in rows, those of datasets.
const KEYS: [&str; 5] = ["bytes", "path", "image", "url", "base64"];

/// Takes the pictures that a row lists, one or several: `images`, or `image` as in LLaVA's data. For a model that takes
/// text alone they are left for the row's other keys.
pub fn listed(
    fields: &mut Fields,
    row: &mut Row,
    columns: &Columns,
    sees: bool,
) -> Result<Vec<Value>> {
    let name = columns.name(IMAGES);
    let mut given = fields.remove(IMAGES);
    if !sees {
        row.extend(given.map(|given| (name.to_owned(), given)));
        return Ok(Vec::new());
    }
    if let Some(one) = row.remove("image").filter(|one| !is_empty(one)) {
        let other = given.replace(one).filter(|other| !is_empty(other));
        ensure!(other.is_none(), "a row has both 'image' and '{name}': leave out one");
    }
    Ok(match given {
        Some(Value::Array(list)) => list,
        Some(one) if !is_empty(&one) => vec![one],
        _ => Vec::new(),
    })
}

/// Of each picture that a text speaks of the file, or the bytes.
///
/// # Errors
/// If there are not as many in the text as in the list.
pub fn matched(mentions: Mentions, listed: Vec<Value>, dir: &Path) -> Result<Vec<Picture>> {
    let open = mentions.iter().filter(|mention| mention.is_none()).count();
    if open != listed.len() {
        let cure = match (open, listed.len()) {
            (_, 0) => {
                "name the files in 'images'; a text about the mark itself must write it in another way, such as '< image>', \
                 since the model knows it as a picture alone"
            }
            (0, _) => "put '<image>', or a part of the type 'image', where each is",
            _ => "make them as many",
        };
        bail!(
            "the text speaks of {open} pictures ('<image>', or parts of the type 'image' without a path), and the row lists \
             {}: {cure}",
            listed.len()
        );
    }
    let mut listed = listed.into_iter();
    let picture = |mention: Option<Value>| {
        Picture::of(&mention.or_else(|| listed.next()).unwrap_or_default(), dir)
    };
    mentions.into_iter().map(picture).collect()
}

impl Picture {
    /// The name in errors.
    pub fn name(&self) -> String {
        match self {
            Picture::File(path) => format!("the picture '{}'", path.display()),
            Picture::Bytes(bytes) => format!("a picture of {} bytes", bytes.len()),
        }
    }

    /// Width and height, from its head.
    ///
    /// # Errors
    /// If it is no picture, or one that would fill the memory.
    pub fn size(&self) -> Result<(u32, u32)> {
        let size = match self {
            Picture::File(path) => {
                regular::read(path).map_err(Into::into).and_then(|bytes| head::size(&bytes))
            }
            Picture::Bytes(bytes) => head::size(bytes),
        };
        size.with_context(|| self.name())
    }

    pub fn read(&self) -> Result<RgbImage> {
        match self {
            Picture::File(path) => picture::read(path),
            Picture::Bytes(bytes) => picture::decoded(bytes).with_context(|| self.name()),
        }
    }

    /// The bytes that it has in the file.
    pub fn length(&self) -> u64 {
        match self {
            Picture::File(path) => path.metadata().map_or(0, |data| data.len()),
            Picture::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// A path, which is one below `dir` unless it is absolute, an address that is a file's, or the bytes themselves.
    pub fn of(value: &Value, dir: &Path) -> Result<Self> {
        match value {
            Value::String(text) => Self::named(text, dir),
            Value::Object(map) => {
                let mut given = KEYS.iter().filter_map(|key| {
                    Some((*key, map.get(*key).filter(|value| !value.is_null())?))
                });
                let first = given.next().with_context(|| {
                    format!("the picture {} has none of {}", shown(value), KEYS.join(", "))
                })?;
                let others: Vec<&str> = given.map(|(key, _)| key).collect();
                match first {
                    // The path is then the name that the file had.
                    ("bytes", Value::String(text)) if text.starts_with("data:") => {
                        Self::named(text, dir)
                    }
                    // Those of a picture may be a text.
                    ("bytes", Value::String(text)) => Ok(Picture::Bytes(text.clone().into_bytes())),
                    ("bytes", other) => bail!("the 'bytes' of a picture are {}", shown(other)),
                    (key, _) if !others.is_empty() => {
                        bail!("a picture has '{key}' and '{}': leave out one", others[0])
                    }
                    ("base64", Value::String(text)) => decoded(text),
                    (_, inner @ (Value::String(_) | Value::Object(_))) => Self::of(inner, dir),
                    (key, other) => {
                        bail!("the '{key}' of a picture is {}, expected a path", shown(other))
                    }
                }
            }
            other => bail!("a picture is {}, expected the path of a file", shown(other)),
        }
    }

    fn named(text: &str, dir: &Path) -> Result<Self> {
        if let Some((_, data)) = text.strip_prefix("data:").and_then(|text| text.split_once(',')) {
            return decoded(data);
        }
        let path = match text.split_once("://") {
            Some(("file", path)) => path,
            Some((scheme, _)) if is_scheme(scheme) => bail!(
                "the picture '{}' is on the web: download it, and give the path of the file",
                shortened(text, 200)
            ),
            _ => text,
        };
        ensure!(!path.is_empty(), "the path of a picture is empty");
        Ok(Picture::File(dir.join(path)))
    }
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn decoded(text: &str) -> Result<Picture> {
    let bytes = STANDARD.decode(text.trim());
    Ok(Picture::Bytes(bytes.context("a picture is no base64")?))
}
