//! The files of a model that are about its text, in a directory or as the metadata of a GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context, Result};
use ln_tuning::gguf::GgufFile;
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{regular, ErrorKind};
use serde_json::Value;

use super::gguf::vocabulary::Vocabulary;
use crate::progress;

/// The tokenizer's file.
pub const TOKENIZER: &str = "tokenizer.json";

/// The words of a model: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, chat templates.
#[derive(Debug, Clone)]
pub enum TextFiles {
    Directory(PathBuf),
    /// Of a GGUF file: the files that its metadata stand for, by their names.
    Gguf {
        path: PathBuf,
        files: BTreeMap<&'static str, String>,
    },
}

impl TextFiles {
    /// The words of an opened model.
    pub fn of(model: &ModelFiles) -> Result<Self> {
        match model.gguf() {
            Some(file) => Self::of_gguf(file),
            None => Ok(TextFiles::Directory(model.dir().to_owned())),
        }
    }

    /// A tokenizer.json beside the file counts only where the file has no tokenizer, or one that is not known: it may
    /// be that of another model.
    pub fn of_gguf(file: &GgufFile) -> Result<Self> {
        let model = file.path();
        let words = Vocabulary::read(file)?;
        let folder = model.parent().unwrap_or(Path::new(""));
        let beside = folder.join(TOKENIZER);
        let cure = format!(
            "put the tokenizer.json of the original model beside the file, as '{}'",
            beside.display()
        );
        let path = || model.display();
        if words.tokens.is_empty() {
            if beside.exists() {
                progress::warn(format!(
                    "'{}' holds no tokenizer: that of '{}' is used",
                    path(),
                    beside.display()
                ));
                return Ok(TextFiles::Directory(folder.to_owned()));
            }
            bail!("'{}' holds no tokenizer ('tokenizer.ggml.tokens'): {cure}", path());
        }
        let tokenizer = match words.tokenizer() {
            Ok(tokenizer) => tokenizer.to_string(),
            Err(error) => {
                let Some(tokenizer) = text(&beside)? else {
                    return Err(anyhow!("'{}': {error:#}: {cure}", path()));
                };
                progress::warn(format!("'{}': {error:#}: '{}' is used", path(), beside.display()));
                tokenizer
            }
        };
        let files = BTreeMap::from([
            (TOKENIZER, tokenizer),
            ("tokenizer_config.json", format!("{:#}\n", words.tokenizer_config())),
            ("generation_config.json", format!("{:#}\n", words.generation_config())),
        ]);
        Ok(TextFiles::Gguf { path: model.to_owned(), files })
    }

    /// `None` where there is no such file.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        match self {
            TextFiles::Directory(dir) => text(&dir.join(name)),
            TextFiles::Gguf { files, .. } => Ok(files.get(name).cloned()),
        }
    }

    /// Null where there is no such file.
    pub fn json(&self, name: &str) -> Result<Value> {
        match self {
            TextFiles::Directory(dir) => json(&dir.join(name)),
            TextFiles::Gguf { .. } => {
                Ok(self.text(name)?.map_or(Ok(Value::Null), |text| serde_json::from_str(&text))?)
            }
        }
    }

    /// The paths of a folder's files.
    pub fn below(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let TextFiles::Directory(dir) = self else { return Ok(Vec::new()) };
        let entries = dir.join(folder).read_dir().into_iter().flatten();
        entries.map(|entry| Ok(entry?.path())).collect()
    }

    /// The file's place, for errors.
    pub fn place(&self, name: &str) -> String {
        match self {
            TextFiles::Directory(dir) => format!("'{}'", dir.join(name).display()),
            TextFiles::Gguf { path, .. } => format!("the {name} of '{}'", path.display()),
        }
    }

    /// The files that Python needs beside an adapter, with their names: those that no directory has.
    pub fn for_adapter(&self) -> Vec<(&str, &str)> {
        let TextFiles::Gguf { files, .. } = self else { return Vec::new() };
        let kept = files.iter().filter(|(name, _)| !name.starts_with("generation"));
        kept.map(|(name, text)| (*name, text.as_str())).collect()
    }
}

/// `None` where there is no file.
pub fn text(path: &Path) -> Result<Option<String>> {
    match regular::read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::MissingFile => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Null where there is no file.
pub fn json(path: &Path) -> Result<Value> {
    let json = text(path)?.map_or(Ok(Value::Null), |text| serde_json::from_str(&text));
    json.with_context(|| format!("cannot read '{}'", path.display()))
}
