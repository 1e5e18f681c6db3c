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

    /// The modules to tune in the model directory, by transformers and PEFT, where `modules` are found.
    pub fn expected(&self, norms: Norms, modules: &BTreeSet<String>) -> BTreeSet<String> {
        match (norms, &self.peft) {
            // Tied heads are not on disk.
            (Norms::Peft, Some(tuned)) => {
                let tied = |path: &String| path == "lm_head" && !modules.contains(path);
                self.leaves(tuned).into_iter().filter(|path| !tied(path)).collect()
            }
            (Norms::Peft, None) => paths(&self.select(&Default::default(), true, Norms::Peft)),
            _ => self.norms.clone(),
        }
    }

    /// The number of weights in modules.
    pub fn parameters(&self, modules: &BTreeSet<String>) -> i64 {
        let inside =
            |name: &&Entry| modules.contains(name.name.rsplit_once('.').map_or("", |(m, _)| m));
        let entries = self.tensors.iter().filter(inside).filter(|entry| entry.parameter);
        entries.map(|entry| entry.shape.iter().product::<i64>()).sum()
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

/// Describes architectures, all or those named, and writes each as a model directory to `dir`.
pub fn describe(dir: &Path, names: &[&str]) -> Described {
    let file = tempfile::NamedTempFile::new().unwrap();
    let paths = [file.path(), dir].map(|path| path.to_str().unwrap());
    common::run_python("architectures.py", &[&["describe"], &paths[..], names].concat());
    serde_json::from_reader(file.as_file()).unwrap()
}
