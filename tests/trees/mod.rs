//! The module trees of real architectures, as transformers and PEFT describe them.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::path::Path;

use crate::common;
use ln_tuning::{LnTuningConfig, Norms, Selection, VariableInfo};
use serde::Deserialize;
use tch::Kind;

#[derive(Deserialize)]
pub struct Described {
    pub rows: Vec<Row>,
    pub table: Vec<String>,
}

#[derive(Deserialize)]
pub struct Row {
    pub name: String,
    pub model_type: String,
    pub tensors: Vec<Entry>,
    pub norms: BTreeSet<String>,
    /// The names in PEFT's table.
    pub table: Option<Vec<String>>,
    /// The modules that PEFT tunes with them.
    pub peft: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub struct Entry {
    pub name: String,
    pub shape: Vec<i64>,
    pub parameter: bool,
}

impl Row {
    pub fn variables(&self) -> Vec<VariableInfo> {
        let variable = |entry: &Entry| VariableInfo {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            kind: Kind::Float,
            is_parameter: entry.parameter,
        };
        self.tensors.iter().map(variable).collect()
    }

    pub fn select(&self, config: &LnTuningConfig, model_type: bool, norms: Norms) -> Selection {
        let model_type = model_type.then_some(self.model_type.as_str());
        let selection = Selection::new(&self.variables(), config, model_type, norms);
        selection.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// PEFT wraps a container as a whole; here it stands for the modules in it that hold tensors.
    pub fn leaves(&self, paths: &[String]) -> BTreeSet<String> {
        let modules = self.tensors.iter().map(|e| e.name.rsplit_once('.').map_or("", |(m, _)| m));
        let inside = |m: &&str| paths.iter().any(|p| m == p || m.starts_with(&format!("{p}.")));
        modules.filter(inside).map(str::to_owned).collect()
    }
}

pub fn paths(selection: &Selection) -> BTreeSet<String> {
    selection.modules().iter().map(|module| module.path.clone()).collect()
}

/// All of them; with a directory to save to, each is saved there as a model directory too.
pub fn describe(save: Option<&Path>) -> Described {
    let file = tempfile::NamedTempFile::new().unwrap();
    let paths = [Some(file.path()), save].into_iter().flatten();
    let arguments: Vec<&str> =
        std::iter::once("describe").chain(paths.map(|path| path.to_str().unwrap())).collect();
    common::run_python("architectures.py", &arguments);
    serde_json::from_reader(file.as_file()).unwrap()
}
