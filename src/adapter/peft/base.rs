//! The base model of a saved adapter: its files in the class that the adapter is for, and what they lack.

use std::collections::{BTreeMap, HashMap};

use serde_json::{json, Map, Value};
use tch::Kind;

use super::keys::variable_of;
use crate::adapter::config::LnTuningConfig;
use crate::adapter::task_type::TaskType;
use crate::error::{refuse, Result};
use crate::names::natural::natural_cmp;
use crate::pretrained::files::ModelFiles;
use crate::pretrained::{is_part_of, with_class_of, Head};
use crate::storage::info::VariableInfo;

/// The base model of a saved adapter.
#[derive(Debug)]
pub(crate) struct Base {
    /// With the names of the class that the adapter is for.
    pub(crate) files: ModelFiles,
    /// True if the files were saved from another class, such as a base model without a head.
    pub(crate) is_new_class: bool,
    /// The tensors that only the adapter has, or has in another shape: those of a new head, or of a vocabulary that was
    /// resized.
    pub(crate) new: BTreeMap<String, Vec<i64>>,
    /// The configuration of the model with these tensors, if it is not that of the files.
    pub(crate) config: Option<Value>,
}

/// A saved adapter: what is known of it without its weights.
pub(crate) struct Facts<'a> {
    pub(crate) config: &'a LnTuningConfig,
    /// The `config.json` beside the adapter, which says the labels of its head.
    pub(crate) model_config: Option<&'a Value>,
    pub(crate) tensors: Vec<(&'a str, Vec<i64>)>,
}

impl Base {
    pub(crate) fn of(files: ModelFiles, facts: &Facts) -> Result<Self> {
        let names: Vec<(String, &[i64])> = facts.names();
        let head = facts.head(&files, &names);
        let is_new_class = head != files.head();
        let files = if is_new_class { files.with_head(head)? } else { files.seen_by(&names)? };
        let (there, layout, needed) =
            (files.variables_with_copies(), files.layout(), files.layout().needed());
        let shapes: HashMap<&str, &[i64]> =
            there.iter().map(|v| (v.name.as_str(), &v.shape[..])).collect();
        let mut new: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (name, shape) in &names {
            let is_new = match shapes.get(name.as_str()) {
                None => {
                    layout.is_of_a_head(name)
                        || needed.iter().any(|module| is_part_of(name, module))
                }
                Some(own) => {
                    own != shape
                        && own.get(1..) == shape.get(1..)
                        && (layout.is_of_a_head(name) || layout.is_of_vocabulary(name))
                }
            };
            if is_new {
                new.insert(name.clone(), shape.to_vec());
            }
        }
        if is_new_class {
            let held = |module: &str| {
                let mut all = shapes.keys().copied().chain(new.keys().map(String::as_str));
                all.any(|name| is_part_of(name, module))
            };
            if let Some(module) = needed.iter().find(|module| !held(module)) {
                refuse!(
                    MissingKeys,
                    "the adapter is for a model with the head {head:?}, and neither it nor '{}' holds '{module}': give \
                     the base with its head, or save '{module}' with the adapter (`modules_to_save`)",
                    files.dir().display()
                );
            }
        }
        let config = facts.model_config(&files, is_new_class, &names, &new);
        Ok(Base { files, is_new_class, new, config })
    }

    /// True for a tensor that only the adapter has, or has in another shape.
    pub(crate) fn is_new(&self, name: &str) -> bool {
        self.new.contains_key(name)
    }

    /// The variables of the model with the adapter's new tensors, from which the adapter selects.
    pub(crate) fn variables(&self) -> Vec<VariableInfo> {
        let mut all = self.files.variables_with_copies();
        all.retain(|variable| !self.is_new(&variable.name));
        all.extend(self.new.iter().map(|(name, shape)| VariableInfo {
            name: name.clone(),
            shape: shape.clone(),
            kind: self.kind(),
            is_parameter: true,
        }));
        all.sort_by(|a, b| natural_cmp(&a.name, &b.name));
        all
    }

    /// The kind of the model's weights, which new tensors take.
    pub(crate) fn kind(&self) -> Kind {
        let parameters = self.files.variables().into_iter().find(|v| v.is_parameter);
        parameters.map_or(Kind::Float, |variable| variable.kind)
    }
}

impl ModelFiles {
    /// The same files with the names of the class whose names the adapter has: one that was trained on a base model
    /// without a head says `layers.0`, with a head `model.layers.0`.
    fn seen_by(self, names: &[(String, &[i64])]) -> Result<Self> {
        let fits = |files: &ModelFiles| names.iter().any(|(name, _)| files.has(name));
        if fits(&self) {
            return Ok(self);
        }
        for head in [Head::None, Head::LanguageModel, Head::MaskedLm, Head::ImageClassification] {
            // The files are looked at again, since another class leaves out tensors of this one.
            if let Ok(files) = ModelFiles::open(self.dir()).and_then(|files| files.with_head(head))
            {
                if fits(&files) {
                    return Ok(files);
                }
            }
        }
        Ok(self)
    }
}

impl Facts<'_> {
    fn names(&self) -> Vec<(String, &[i64])> {
        let names = self.tensors.iter();
        names.filter_map(|(key, shape)| Some((variable_of(key)?, &shape[..]))).collect()
    }

    /// The head of the model that the adapter is for: by the configuration beside it, by its task, by a head that it
    /// has and the files lack; else that of the files.
    fn head(&self, files: &ModelFiles, names: &[(String, &[i64])]) -> Head {
        let own = files.head();
        let class =
            self.model_config.and_then(|config| config.get("architectures")?.get(0)?.as_str());
        let of_task = match self.config.task_type {
            Some(TaskType::SeqCls) => Some(Head::SequenceClassification),
            Some(TaskType::TokenCls) => Some(Head::TokenClassification),
            Some(TaskType::QuestionAns) => Some(Head::QuestionAnswering),
            _ => None,
        };
        let lacks = |name: &str| files.layout().is_of_a_head(name) && !files.has(name);
        let lacking = names.iter().any(|(name, _)| lacks(name));
        let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        let shown = || lacking.then(|| files.layout().head_of(&names)).flatten();
        let wanted = class.map(Head::of_class).or(of_task.filter(|_| lacking)).or_else(shown);
        // A class of several heads, or one that is not known, stays as it is.
        wanted.filter(|head| files.layout().has_head(*head)).unwrap_or(own)
    }

    /// The configuration of a model with these new tensors.
    fn model_config(
        &self,
        files: &ModelFiles,
        is_new_class: bool,
        all: &[(String, &[i64])],
        new: &BTreeMap<String, Vec<i64>>,
    ) -> Option<Value> {
        let mut config = files.config().clone();
        if is_new_class && config.get("architectures").is_some_and(|classes| !classes.is_null()) {
            config = with_class_of(&config, files.head());
        }
        if let Some(count) =
            files.layout().rows_of_output(all).filter(|_| files.head().has_labels())
        {
            self.set_labels(&mut config, count);
        }
        let rows = new.iter().find(|(name, _)| files.layout().is_of_vocabulary(name));
        if let Some(rows) = rows.and_then(|(_, shape)| shape.first()) {
            let inner =
                config.get_mut("text_config").filter(|inner| inner.get("vocab_size").is_some());
            match inner {
                Some(inner) => inner["vocab_size"] = json!(rows),
                None => config["vocab_size"] = json!(rows),
            }
        }
        (config != *files.config()).then_some(config)
    }

    /// The labels' names: those beside the adapter; those of the model if there are as many; else numbers.
    fn set_labels(&self, config: &mut Value, count: i64) {
        const KEYS: [&str; 4] = ["id2label", "label2id", "num_labels", "problem_type"];
        let of = |config: &Value| config.get("id2label").and_then(Value::as_object).map(Map::len);
        let beside = self.model_config.filter(|beside| of(beside) == Some(count as usize));
        let Some(fields) = config.as_object_mut() else { return };
        if let Some(beside) = beside {
            for key in KEYS {
                fields.shift_remove(key);
                fields.extend(beside.get(key).map(|value| (key.to_owned(), value.clone())));
            }
        } else if fields.get("id2label").and_then(Value::as_object).map(Map::len)
            != Some(count as usize)
        {
            fields.retain(|key, _| !KEYS.contains(&key.as_str()));
            let label = |id: i64| format!("LABEL_{id}");
            let by_id = (0..count).map(|id| (id.to_string(), json!(label(id))));
            fields.insert("id2label".into(), Value::Object(by_id.collect()));
            let by_label = (0..count).map(|id| (label(id), json!(id)));
            fields.insert("label2id".into(), Value::Object(by_label.collect()));
        }
    }
}
