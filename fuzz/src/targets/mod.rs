//! The targets: each makes files and hands them to the code under test.

mod adapter;
mod faulty;
mod gguf;
mod model;
mod pattern;
mod program;

use std::path::{Path, PathBuf};

use anyhow::{bail, Result};
use fastrand::Rng;

use crate::{damage, files};

/// The targets that run if none is named.
pub const NAMES: [&str; 8] =
    ["adapter", "model", "gguf", "config", "pattern", "settings", "chat", "rows"];

/// A target.
pub trait Target {
    /// Writes the files of a round.
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()>;

    /// Hands them to the code under test. An error is an answer like any other.
    fn run(&self, dir: &Path) -> Result<()>;
}

/// Opens a target by its name.
pub fn open(name: &str) -> Result<Box<dyn Target>> {
    Ok(match name {
        "adapter" => Box::new(adapter::Adapter::new()?),
        "config" => Box::new(adapter::Config::new()?),
        "gguf" => Box::new(gguf::Gguf::new()?),
        "model" => Box::new(model::Model::new()?),
        "pattern" => Box::new(pattern::Pattern),
        "settings" | "chat" | "rows" => Box::new(program::Program::new(name)?),
        "faulty" => Box::new(faulty::Faulty),
        _ => bail!("there is no target '{name}', only {}", NAMES.join(", ")),
    })
}

/// Valid directories, made when a worker starts.
pub struct Seeds {
    dir: tempfile::TempDir,
    names: Vec<String>,
}

impl Seeds {
    pub fn new() -> Result<Self> {
        Ok(Seeds { dir: tempfile::tempdir()?, names: Vec::new() })
    }

    /// The place of a new one.
    pub fn add(&mut self, name: &str) -> PathBuf {
        self.names.push(name.to_owned());
        self.dir.path().join(name)
    }

    /// Copies one of them.
    pub fn copy(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        let name = damage::pick(rng, &self.names).expect("there are seeds");
        files::copy(&self.dir.path().join(name), dir)
    }
}
