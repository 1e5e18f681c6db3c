//! The model that merging makes: the tensors of its files, and its configuration.

use std::collections::{HashMap, HashSet};

use safetensors::tensor::Dtype;
use serde_json::{json, Value};
use tch::no_grad;

use super::peft::base::Base;
use super::peft::keys::{carried as carried_name, match_keys, KeyMapping};
use super::peft::mismatch;
use crate::adapter::config::LnTuningConfig;
use crate::adapter::selection::{Norms, SelectedTensor, Selection};
use crate::error::{refuse, Result};
use crate::names::natural::natural_cmp;
use crate::pretrained::opened::INDEX;
use crate::pretrained::tensor_file::TensorFile;
use crate::storage::finite::check_finite;
use crate::storage::safetensors::{dtype_of, kind_of};
use crate::storage::shard::{header_of, Entry, Piece, Shard};
use crate::storage::stored::{Stored, StoredTensors};

/// The model that merging makes.
pub(super) struct Merged<'a> {
    base: &'a Base,
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
        base: &'a Base,
        config: &LnTuningConfig,
        adapter: &'a StoredTensors,
    ) -> Result<Self> {
        let (files, variables) = (&base.files, base.variables());
        let selection = Selection::of_saved(&variables, config, files.model_type(), Norms::Peft)?;
        let wanted: Vec<SelectedTensor> = selection.tensors().collect();
        let wanted: Vec<&SelectedTensor> = wanted.iter().collect();
        let keys: Vec<&str> = adapter.tensors.iter().map(|stored| stored.key.as_str()).collect();
        let mut matched = match_keys(&wanted, &keys, "default", &KeyMapping::default())?;
        let mut carried = Vec::new();
        let known: HashSet<&str> = variables.iter().map(|v| v.name.as_str()).collect();
        for key in std::mem::take(&mut matched.unexpected) {
            let name = carried_name(&key, &KeyMapping::default())?;
            match name.filter(|name| known.contains(name.as_str())) {
                Some(name) => carried.push((name, key)),
                None => matched.unexpected.push(key),
            }
        }
        let place = format!("in '{}'", files.dir().display());
        mismatch::check(&matched, &wanted, &keys, &place, (false, false))?;
        let originals: HashMap<String, String> = files.copies().into_iter().collect();
        let mut replaced = HashMap::new();
        let found = wanted.iter().zip(&matched.found);
        let found = found.filter_map(|(want, found)| Some((want.variable(), (*found)?)));
        let places: HashMap<&str, usize> =
            keys.iter().enumerate().map(|(at, key)| (*key, at)).collect();
        let carried = carried.iter().map(|(name, key)| (name.clone(), places[key.as_str()]));
        for (name, index) in found.chain(carried) {
            let original = originals.get(&name).unwrap_or(&name);
            let stored = &adapter.tensors[index];
            let place = files.find(original);
            if let Some(place) = place.filter(|_| !base.is_new(&name)) {
                check_shape(stored, &place.shape())?;
            }
            let place = place.map(|place| &place.stored);
            adapter.check_finite(stored)?;
            let kind = place.map_or(Some(base.kind()), |place| kind_of(place.dtype));
            let (Some(kind), Some(own)) = (kind, kind_of(stored.dtype)) else {
                refuse!(
                    KindMismatch,
                    "'{name}' or '{}' has a kind that libtorch lacks",
                    stored.key
                );
            };
            if kind != own {
                no_grad(|| check_finite(&[(&stored.key, &adapter.read(stored)?, kind)]))?;
            }
            replaced.insert(name, stored);
        }
        let config = base.config.clone();
        let mut merged = Merged { base, adapter, replaced, untied: Vec::new(), config };
        merged.untie(&selection)?;
        merged.check_vocabulary()?;
        Ok(merged)
    }

    /// Finds the copies that differ from their originals now: the adapter has one of the two, or each apart.
    fn untie(&mut self, selection: &Selection) -> Result<()> {
        let wrapped = |name: &str| {
            let has = |own: &String| own == name;
            let module = selection.modules().iter().find(|m| m.variables.iter().any(has))?;
            Some(&module.wrapped)
        };
        let mut copies = self.base.files.copies();
        let (mut tied, mut untied) = (Vec::new(), Vec::new());
        for (copy, original) in copies.drain(..) {
            let (of_copy, of_original) = (wrapped(&copy), wrapped(&original));
            let together = of_copy.is_some() && of_copy == of_original;
            if together {
                self.replaced.remove(&copy);
            } else if of_copy.is_none() && of_original.is_none() {
                // A tensor that PEFT puts into the base goes into both.
                self.carry(&copy, &original)?;
            }
            if self.replaced.contains_key(&copy) || of_original.is_some() && !together {
                untied.push((copy, original));
            } else {
                tied.push((copy, original));
            }
        }
        let files = &self.base.files;
        if !untied.is_empty() && files.layout().is_tied_by_config() {
            let config = self.config.get_or_insert_with(|| files.config().clone());
            set_untied(config);
            // Now no copy is tied any more.
            for (copy, original) in &tied {
                if let Some(stored) = self.replaced.get(original).copied() {
                    self.replaced.insert(copy.clone(), stored);
                }
            }
            untied.append(&mut tied);
        }
        self.untied = untied;
        Ok(())
    }

    /// Gives a tensor that is in the adapter as one of the base's, for a tied copy, to the original.
    fn carry(&mut self, copy: &str, original: &str) -> Result<()> {
        let Some(stored) = self.replaced.remove(copy) else { return Ok(()) };
        let other = *self.replaced.entry(original.to_owned()).or_insert(stored);
        if !self.adapter.is_same(stored, self.adapter, other)? {
            refuse!(
                TiedTensors,
                "the adapter brings different values for '{copy}' and '{original}', which are tied in the base: set \
                 `tie_word_embeddings` to false there, and save both"
            );
        }
        Ok(())
    }

    /// Refuses a resized vocabulary where a tensor of the base keeps the former size.
    fn check_vocabulary(&self) -> Result<()> {
        let files = &self.base.files;
        let rows =
            |name: &str| self.replaced.get(name).and_then(|stored| stored.shape.first().copied());
        let resized = self
            .base
            .new
            .keys()
            .find(|name| files.find(name).is_some() && files.layout().is_of_vocabulary(name));
        let Some(rows) = resized.and_then(|name| rows(name)) else { return Ok(()) };
        let former = files.tensors().iter().find(|place| {
            let of_vocabulary = files.layout().is_of_vocabulary(&place.name)
                || place.name.ends_with("final_logits_bias");
            let shape =
                self.replaced.get(&place.name).map_or(&place.stored.shape, |stored| &stored.shape);
            of_vocabulary && !shape.contains(&rows)
        });
        if let Some(former) = former {
            refuse!(
                ShapeMismatch,
                "the adapter's vocabulary has {rows} tokens, and '{}' of shape {:?} is not in it: resize the base first \
                 (`resize_token_embeddings`), and save it",
                former.name,
                former.stored.shape
            );
        }
        Ok(())
    }

    /// The adapter's tensors by the names of the model's tensors that they replace.
    pub(super) fn replaced(&self) -> impl Iterator<Item = (&str, &'a Stored)> + '_ {
        self.replaced.iter().map(|(name, stored)| (name.as_str(), *stored))
    }

    pub(super) fn adapter(&self) -> &'a StoredTensors {
        self.adapter
    }

    /// True for one of two tied tensors that are no longer tied.
    pub(super) fn is_untied(&self, name: &str) -> bool {
        self.untied.iter().any(|(copy, original)| copy == name || original == name)
    }

    /// True if the result has the tensors and the configuration of the base.
    pub(super) fn keeps_form(&self) -> bool {
        self.untied.is_empty() && self.config.is_none() && !self.base.is_new_class
    }

    /// The tensors that were replaced, in natural order of their names.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.replaced.keys().cloned().collect();
        names.sort_by(|a, b| natural_cmp(a, b));
        names
    }

    /// The new files of weights, in the order of the former ones.
    pub(super) fn shards(&self) -> Result<Vec<Shard<'a>>> {
        let (files, last) = (&self.base.files, self.base.files.shards().len() - 1);
        let left_out: HashSet<&str> = files.left_out().into_iter().collect();
        let mut shards = Vec::new();
        for (index, file) in files.shards().iter().enumerate() {
            let mut raw: Vec<&Stored> = file.tensors.iter().collect();
            raw.sort_by_key(|stored| stored.start);
            let mut entries: Vec<Entry> = raw.iter().map(|stored| copied(file, stored)).collect();
            let former: Vec<_> = raw.iter().map(|stored| (&stored.key, &stored.shape)).collect();
            let places: HashMap<&str, usize> =
                raw.iter().enumerate().map(|(at, stored)| (stored.key.as_str(), at)).collect();
            for (place, stored) in self.replacements(index) {
                if let Some(&at) = places.get(place.stored.key.as_str()) {
                    // Only a tensor that is whole can have another size.
                    if place.stored.len == raw[at].len {
                        entries[at].shape.clone_from(&stored.shape);
                    }
                    entries[at].replace(
                        &place.stored,
                        Piece { file: self.adapter, stored: stored.clone() },
                    );
                }
            }
            if self.base.is_new_class {
                entries.retain(|entry| !left_out.contains(entry.key.as_str()));
                entries.iter_mut().for_each(|entry| {
                    entry.key = files.layout().key_with_base(&entry.key);
                });
            }
            if index == last {
                entries.extend(self.untied.iter().filter_map(|pair| self.untied_entry(pair)));
                entries.extend(self.new_entries());
            }
            let is_former = |(entry, former): (&Entry, &(&String, &Vec<i64>))| {
                (&entry.key, &entry.shape) == *former
            };
            let same = entries.len() == former.len() && entries.iter().zip(&former).all(is_former);
            let mut shard = Shard { header: header_of(file)?, entries };
            if !same {
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
        let own = self.base.files.tensors().iter().filter(move |place| place.shard == shard);
        own.filter_map(|place| Some((place, *self.replaced.get(&place.name)?)))
    }

    /// A copy with a tensor of its own: the adapter's or that of the base.
    fn untied_entry(&self, (copy, original): &(String, String)) -> Option<Entry<'a>> {
        let files = &self.base.files;
        let place = files.find(original)?;
        let file = &files.shards()[place.shard];
        let mut entry = copied(file, &place.stored);
        entry.key = self.key(copy);
        if let Some(stored) = self.replaced.get(copy) {
            entry.shape.clone_from(&stored.shape);
            entry.replace(&place.stored, Piece { file: self.adapter, stored: (*stored).clone() });
        }
        Some(entry)
    }

    /// The tensors that the base lacks.
    fn new_entries(&self) -> impl Iterator<Item = Entry<'a>> + '_ {
        let lacks = |name: &&String| {
            let is_copy = self.untied.iter().any(|(copy, _)| copy == *name);
            self.base.files.find(name).is_none() && !is_copy
        };
        let mut names: Vec<&String> = self.replaced.keys().filter(lacks).collect();
        names.sort_by(|a, b| natural_cmp(a, b));
        let dtype = dtype_of(self.base.kind()).unwrap_or(Dtype::F32);
        names.into_iter().map(move |name| {
            let stored = self.replaced[name];
            Entry { key: self.key(name), dtype, ..copied(self.adapter, stored) }
        })
    }

    /// The key of a tensor in the new files.
    fn key(&self, name: &str) -> String {
        if self.base.is_new_class {
            return name.to_owned();
        }
        self.base.files.layout().key(name)
    }

    /// The other files that change: their names and texts.
    pub(super) fn changed_files(&self, shards: &[Shard]) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        changed.extend(self.config.as_ref().map(|config| ("config.json", format!("{config:#}\n"))));
        if self.config.is_some() || !self.untied.is_empty() {
            let mut map = serde_json::Map::new();
            for (file, shard) in self.base.files.shards().iter().zip(shards) {
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

fn check_shape(stored: &Stored, shape: &[i64]) -> Result<()> {
    if stored.shape != shape {
        refuse!(
            ShapeMismatch,
            "'{}' has shape {:?}, the model's is {shape:?}: was the adapter made for another size?",
            stored.key,
            stored.shape
        );
    }
    Ok(())
}

/// Says that no tensor is tied.
fn set_untied(config: &mut Value) {
    // If a language model within another says nothing, its default counts, which may be true.
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.insert("tie_word_embeddings".into(), false.into());
    }
    config["tie_word_embeddings"] = false.into();
}
