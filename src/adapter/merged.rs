//! The model that merging makes: the tensors of its files, and its configuration.

use std::collections::HashMap;

use serde_json::{json, Value};
use tch::no_grad;

use super::peft::keys::{match_keys, KeyMapping};
use crate::adapter::config::LnTuningConfig;
use crate::adapter::selection::{Norms, SelectedTensor, Selection};
use crate::error::{refuse, Error, ErrorKind, Result};
use crate::names::natural::natural_cmp;
use crate::pretrained::files::{ModelFiles, TensorFile, INDEX};
use crate::storage::finite::check_finite;
use crate::storage::safetensors::kind_of;
use crate::storage::shard::{header_of, Entry, Piece, Shard};
use crate::storage::stored::{Stored, StoredTensors};

/// The model that merging makes.
pub(super) struct Merged<'a> {
    files: &'a ModelFiles,
    adapter: &'a StoredTensors,
    /// The adapter's tensors by the names of the model's tensors that they replace.
    replaced: HashMap<String, &'a Stored>,
    /// Tied copies that are no longer tied, each with its original.
    untied: Vec<(String, String)>,
    config: Option<Value>,
}

impl<'a> Merged<'a> {
    /// All checks come before the first write.
    pub(super) fn of(
        files: &'a ModelFiles,
        config: &LnTuningConfig,
        adapter: &'a StoredTensors,
    ) -> Result<Self> {
        let variables = files.variables_with_copies();
        let selection = Selection::of_saved(&variables, config, files.model_type(), Norms::Peft)?;
        let wanted: Vec<SelectedTensor> = selection.tensors().collect();
        let wanted: Vec<&SelectedTensor> = wanted.iter().collect();
        let keys: Vec<&str> = adapter.tensors.iter().map(|stored| stored.key.as_str()).collect();
        let matched = match_keys(&wanted, &keys, "default", &KeyMapping::default())?;
        for (kind, keys, what) in [
            (
                ErrorKind::MissingKeys,
                &matched.missing,
                "lacks tensors of the modules that it tunes",
            ),
            (
                ErrorKind::UnexpectedKeys,
                &matched.unexpected,
                "holds tensors that belong to no module",
            ),
        ] {
            if let Some(first) = keys.first() {
                let (more, dir) = (keys.len() - 1, files.dir().display());
                let message = format!(
                    "the adapter {what} ('{first}' and {more} more): was it made for another model than '{dir}'?"
                );
                return Err(Error::new(kind, message));
            }
        }
        let originals: HashMap<String, String> = files.copies().into_iter().collect();
        let mut replaced = HashMap::new();
        for (want, found) in wanted.iter().zip(&matched.found) {
            let name = want.variable();
            let original = originals.get(&name).unwrap_or(&name);
            if let (Some(index), Some(place)) = (found, files.find(original)) {
                let stored = &adapter.tensors[*index];
                check_fit(stored, place)?;
                adapter.check_finite(stored)?;
                let kind = kind_of(place.stored.dtype);
                if let Some(kind) = kind.filter(|_| stored.dtype != place.stored.dtype) {
                    no_grad(|| check_finite(&[(&stored.key, &adapter.read(stored)?, kind)]))?;
                }
                replaced.insert(name, stored);
            }
        }
        let mut merged = Merged { files, adapter, replaced, untied: Vec::new(), config: None };
        merged.untie(&selection);
        Ok(merged)
    }

    /// Finds the copies that differ from their originals now: the adapter has one of the two, or each apart.
    fn untie(&mut self, selection: &Selection) {
        let wrapped = |name: &str| {
            let has = |own: &String| own == name;
            let module = selection.modules().iter().find(|m| m.variables.iter().any(has))?;
            Some(&module.wrapped)
        };
        let mut copies = self.files.copies();
        let (mut tied, mut untied) = (Vec::new(), Vec::new());
        for (copy, original) in copies.drain(..) {
            let together = wrapped(&copy) == wrapped(&original);
            if together {
                self.replaced.remove(&copy);
            }
            if together
                || !self.replaced.contains_key(&copy) && !self.replaced.contains_key(&original)
            {
                tied.push((copy, original));
            } else {
                untied.push((copy, original));
            }
        }
        self.config = self.files.untied_config().filter(|_| !untied.is_empty());
        if self.config.is_some() {
            // Now no copy is tied any more.
            for (copy, original) in &tied {
                if let Some(stored) = self.replaced.get(original).copied() {
                    self.replaced.insert(copy.clone(), stored);
                }
            }
            untied.append(&mut tied);
        }
        self.untied = untied;
    }

    /// The tensors that were replaced, in natural order of their names.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.replaced.keys().cloned().collect();
        names.sort_by(|a, b| natural_cmp(a, b));
        names
    }

    /// The new files of weights, in the order of the former ones.
    pub(super) fn shards(&self) -> Result<Vec<Shard<'a>>> {
        let (files, last) = (self.files, self.files.shards().len() - 1);
        let mut shards = Vec::new();
        for (index, file) in files.shards().iter().enumerate() {
            let mut raw: Vec<&Stored> = file.tensors.iter().collect();
            raw.sort_by_key(|stored| stored.start);
            let mut entries: Vec<Entry> = raw.iter().map(|stored| copied(file, stored)).collect();
            for (place, stored) in self.replacements(index) {
                let own = |stored: &&Stored| stored.key == place.stored.key;
                if let Some(at) = raw.iter().position(own) {
                    entries[at].replace(
                        &place.stored,
                        Piece { file: self.adapter, stored: stored.clone() },
                    );
                }
            }
            let mut shard = Shard { header: header_of(file)?, entries };
            if index == last && !self.untied.is_empty() {
                shard.entries.extend(self.untied.iter().filter_map(|pair| self.untied_entry(pair)));
                shard.make_header();
            }
            shards.push(shard);
        }
        Ok(shards)
    }

    fn replacements(
        &self,
        shard: usize,
    ) -> impl Iterator<Item = (&'a TensorFile, &'a Stored)> + '_ {
        let own = self.files.tensors().iter().filter(move |place| place.shard == shard);
        own.filter_map(|place| Some((place, *self.replaced.get(&place.name)?)))
    }

    /// A copy with a tensor of its own: the adapter's or that of the base.
    fn untied_entry(&self, (copy, original): &(String, String)) -> Option<Entry<'a>> {
        let place = self.files.find(original)?;
        let file = &self.files.shards()[place.shard];
        let mut entry = copied(file, &place.stored);
        entry.key = self.files.key(copy);
        if let Some(stored) = self.replaced.get(copy) {
            entry.replace(&place.stored, Piece { file: self.adapter, stored: (*stored).clone() });
        }
        Some(entry)
    }

    /// The other files that change: their names and texts.
    pub(super) fn changed_files(&self, shards: &[Shard]) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        changed.extend(self.config.as_ref().map(|config| ("config.json", format!("{config:#}\n"))));
        if !self.untied.is_empty() {
            let mut map = serde_json::Map::new();
            for (file, shard) in self.files.shards().iter().zip(shards) {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                map.extend(shard.entries.iter().map(|entry| (entry.key.clone(), json!(name))));
            }
            let size: u64 = shards.iter().map(Shard::data_len).sum();
            let index = json!({"metadata": {"total_size": size}, "weight_map": map});
            changed.push((INDEX, format!("{index:#}\n")));
        }
        changed
    }
}

/// A tensor as it stands in the base's files.
fn copied<'a>(file: &'a StoredTensors, stored: &Stored) -> Entry<'a> {
    Entry {
        key: stored.key.clone(),
        dtype: stored.dtype,
        shape: stored.shape.clone(),
        pieces: vec![Piece { file, stored: stored.clone() }],
    }
}

fn check_fit(stored: &Stored, place: &TensorFile) -> Result<()> {
    let shape = &place.stored.shape;
    if stored.shape != *shape {
        refuse!(
            ShapeMismatch,
            "'{}' has shape {:?}, the model's is {shape:?}: was the adapter made for another size?",
            stored.key,
            stored.shape
        );
    }
    for (name, dtype) in [(&stored.key, stored.dtype), (&place.name, place.stored.dtype)] {
        if kind_of(dtype).is_none() {
            refuse!(KindMismatch, "'{name}' has kind {dtype:?}, which libtorch lacks");
        }
    }
    Ok(())
}
