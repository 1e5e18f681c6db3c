//! A model's configuration: the fields of a `config.json`, read by name and type, with errors that say which.

use std::path::Path;

use serde_json::{json, Map, Value};

use crate::error::{refuse, Error, ErrorKind, Result};
use crate::pretrained::{with_class_of, Head};
use crate::regular;

/// The shape and the options of a model, as a `config.json` of transformers says them.
pub trait ModelConfig: Sized + Clone + std::fmt::Debug {
    /// The head that labels of your own belong to.
    const CLASSIFIER: Head = Head::SequenceClassification;

    /// The `model_type`s that are known.
    fn model_types() -> Vec<&'static str>;

    /// True if files with this head are of this model, where models share a `model_type`. Default: all.
    fn has_head(_head: Head) -> bool {
        true
    }

    /// The module of a larger model that is this model, and its configuration there, if that is what a `config.json`
    /// describes. Default: it never is.
    ///
    /// # Errors
    /// `InvalidConfig` for a key that does not fit.
    fn part_of(_config: &Value) -> Result<Option<(&'static str, Value)>> {
        Ok(None)
    }

    /// Reads the parsed `config.json`. The head is the one of `architectures`.
    ///
    /// # Errors
    /// `Unsupported` for a `model_type` or a head that the model lacks, or an option that changes the computation and
    /// is not implemented; `InvalidConfig` for a key that is missing or does not fit.
    fn from_value(config: &Value) -> Result<Self>;

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `MissingFile` or `Io` if it cannot be read; as [`from_json`](Self::from_json).
    fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_json(&regular::read_text(path.as_ref())?)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// `InvalidConfig` for bad JSON; as [`from_value`](Self::from_value).
    fn from_json(text: &str) -> Result<Self> {
        Self::from_value(&serde_json::from_str(text).map_err(|e| {
            Error::with_source(ErrorKind::InvalidConfig, "the configuration is not JSON", e)
        })?)
    }

    /// The text of the `config.json` that transformers reads.
    fn to_json(&self) -> String {
        format!("{:#}\n", self.to_value())
    }

    /// The fields as they stand in the file, the head and the labels.
    fn declared(&self) -> &Declared;

    /// The same, to be changed.
    fn declared_mut(&mut self) -> &mut Declared;

    /// The modules that are made anew for labels of your own, beside the base model or in it. Default: `classifier`.
    fn label_modules(&self) -> Vec<String> {
        vec!["classifier".into()]
    }

    /// The same with what a `generation_config.json` says. Default: it says nothing.
    ///
    /// # Errors
    /// `InvalidConfig` for a key that does not fit.
    fn with_generation(self, _generation: &Value) -> Result<Self> {
        Ok(self)
    }

    /// The `config.json` that transformers reads: the fields that were read, with the head and the labels.
    fn to_value(&self) -> Value {
        self.declared().to_value()
    }

    /// The `model_type`, such as `llama`.
    fn model_type(&self) -> &str {
        self.declared().model_type()
    }

    /// The head on top of the base model.
    fn head(&self) -> Head {
        self.declared().head
    }

    /// The same with another head.
    ///
    /// # Errors
    /// `Unsupported` for a head that the model lacks.
    fn with_head(mut self, head: Head) -> Result<Self> {
        self.declared_mut().set_head(head)?;
        Ok(self)
    }

    /// The labels' names, in the order of the logits; none without a classifier.
    #[doc(alias = "id2label")]
    fn labels(&self) -> &[String] {
        &self.declared().labels
    }

    /// The same with other labels. What the file says of the kind of problem was about the former ones, and goes.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none, or one twice, or the head has no labels.
    fn with_labels<L: Into<String>>(mut self, labels: impl IntoIterator<Item = L>) -> Result<Self> {
        self.declared_mut().set_labels(labels.into_iter().map(Into::into).collect())?;
        Ok(self)
    }
}

/// The two methods of a [`ModelConfig`] with a field `declared`.
macro_rules! declared {
    () => {
        fn declared(&self) -> &Declared {
            &self.declared
        }

        fn declared_mut(&mut self) -> &mut Declared {
            &mut self.declared
        }
    };
}
pub(super) use declared;

/// The part that all configurations keep of a `config.json`: every field, also those that are not read; the head; the
/// labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    fields: Map<String, Value>,
    /// The heads that the model may have.
    known: &'static [Head],
    head: Head,
    labels: Vec<String>,
}

impl Declared {
    /// Checks what no model implements. `model_types` and `known` heads are those of the model. A file without
    /// `architectures` has the head `default`, one without `model_type` is taken for the only one.
    ///
    /// # Errors
    /// `Unsupported` for another `model_type` or head, or a checkpoint that is quantised or pruned; `InvalidConfig` for
    /// labels that do not fit.
    pub fn read(
        config: &Value,
        model_types: &[&str],
        known: &'static [Head],
        default: Head,
    ) -> Result<Self> {
        let model_type = match (config.get("model_type").and_then(Value::as_str), model_types) {
            (None, [only]) => only,
            (given, _) => given.unwrap_or_default(),
        };
        if !model_types.contains(&model_type) {
            refuse!(
                Unsupported,
                "model_type is '{model_type}', expected one of {}",
                model_types.join(", ")
            );
        }
        let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        for key in ["quantization_config", "pruned_heads"] {
            if config.get(key).is_some_and(|value| !empty(value)) {
                refuse!(Unsupported, "'{key}' is set: load a checkpoint without it");
            }
        }
        let class = config.get("architectures").and_then(|classes| classes.get(0)?.as_str());
        let head = match class {
            None => default,
            Some(class) => match Head::of_class(class) {
                head if known.contains(&head) && !class.ends_with("Backbone") => head,
                _ => {
                    let of = |head: &Head| with_class_of(config, *head)["architectures"][0].clone();
                    let classes: Vec<Value> = known.iter().map(of).collect();
                    let classes: Vec<&str> = classes.iter().filter_map(Value::as_str).collect();
                    refuse!(
                        Unsupported,
                        "'architectures' begins with '{class}', expected one of {}: name a head (Load::head) to load it \
                         as another class",
                        classes.join(", ")
                    );
                }
            },
        };
        let mut fields = config.as_object().cloned().unwrap_or_default();
        fields.entry("model_type").or_insert_with(|| model_type.into());
        let labels = if head.has_labels() { labels(config)? } else { Vec::new() };
        Ok(Declared { fields, known, head, labels })
    }

    /// The head.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The labels' names, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The `model_type`.
    pub fn model_type(&self) -> &str {
        self.fields.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn set_head(&mut self, head: Head) -> Result<()> {
        if !self.known.contains(&head) {
            refuse!(
                Unsupported,
                "{} has no head {head:?}, expected one of {:?}",
                self.model_type(),
                self.known
            );
        }
        if head != self.head {
            let config = with_class_of(&Value::Object(self.fields.clone()), head);
            self.labels = match (head.has_labels(), self.head.has_labels()) {
                (true, true) => std::mem::take(&mut self.labels),
                (true, false) => labels(&config)?,
                (false, _) => Vec::new(),
            };
            self.fields = config.as_object().cloned().unwrap_or_default();
            self.head = head;
        }
        Ok(())
    }

    fn set_labels(&mut self, labels: Vec<String>) -> Result<()> {
        if !self.head.has_labels() {
            refuse!(InvalidArgument, "{:?} has no labels, expected a classifier", self.head);
        }
        let twice = |(place, label): (usize, &String)| labels[..place].contains(label);
        if labels.is_empty() || labels.iter().enumerate().any(twice) {
            refuse!(InvalidArgument, "the labels are {labels:?}, expected one or more, each once");
        }
        self.labels = labels;
        self.fields.shift_remove("problem_type");
        Ok(())
    }

    fn to_value(&self) -> Value {
        let mut fields = self.fields.clone();
        if self.head.has_labels() {
            fields.shift_remove("num_labels");
            let labels = self.labels.iter().enumerate();
            let by_id: Map<_, _> =
                labels.clone().map(|(id, label)| (id.to_string(), json!(label))).collect();
            let by_label: Map<_, _> =
                labels.map(|(id, label)| (label.clone(), json!(id))).collect();
            fields.insert("id2label".into(), Value::Object(by_id));
            fields.insert("label2id".into(), Value::Object(by_label));
        }
        Value::Object(fields)
    }
}

pub(super) fn not_implemented<T>(what: &str) -> Result<T> {
    refuse!(Unsupported, "{what} is not implemented")
}

pub(super) fn integer(config: &Value, key: &str) -> Result<i64> {
    match config.get(key).and_then(Value::as_i64) {
        Some(value) => Ok(value),
        None => refuse!(InvalidConfig, "'{key}' is missing, or not an integer"),
    }
}

pub(super) fn integer_or(config: &Value, key: &str, default: i64) -> Result<i64> {
    Ok(optional_integer(config, key)?.unwrap_or(default))
}

/// Nothing where the key is not there or null.
pub(super) fn optional_integer(config: &Value, key: &str) -> Result<Option<i64>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => integer(config, key).map(Some),
    }
}

/// The largest size: products of two, and sums of a few of them, fit into 64 bits.
const LARGEST: i64 = 1 << 24;
/// The most layers, and the most labels. Both are listed before a file can tell that there are fewer.
const MOST_LAYERS: i64 = 1 << 14;
const MOST_LABELS: i64 = 1 << 20;

/// A width, or a number of rows.
pub(super) fn size(config: &Value, key: &str) -> Result<i64> {
    within(key, integer(config, key)?, LARGEST)
}

pub(super) fn size_or(config: &Value, key: &str, default: i64) -> Result<i64> {
    within(key, integer_or(config, key, default)?, LARGEST)
}

/// A number of layers.
pub(super) fn layers(config: &Value, key: &str) -> Result<i64> {
    within(key, integer(config, key)?, MOST_LAYERS)
}

pub(super) fn layers_or(config: &Value, key: &str, default: i64) -> Result<i64> {
    within(key, integer_or(config, key, default)?, MOST_LAYERS)
}

fn within(key: &str, value: i64, most: i64) -> Result<i64> {
    if !(1..=most).contains(&value) {
        refuse!(InvalidConfig, "'{key}' is {value}, expected 1 to {most}");
    }
    Ok(value)
}

pub(super) fn number(config: &Value, key: &str, default: f64) -> Result<f64> {
    Ok(optional_number(config, key)?.unwrap_or(default))
}

/// Nothing where the key is not there or null.
pub(super) fn optional_number(config: &Value, key: &str) -> Result<Option<f64>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => refuse!(InvalidConfig, "'{key}' is {value}, expected a number"),
        },
    }
}

pub(super) fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => refuse!(InvalidConfig, "'{key}' is {other}, expected true or false"),
    }
}

/// A name, `default` where the key is not there or null.
pub(super) fn text<'a>(config: &'a Value, key: &str, default: &'a str) -> Result<&'a str> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::String(name)) => Ok(name),
        Some(other) => refuse!(InvalidConfig, "'{key}' is {other}, expected a name"),
    }
}

/// Refuses derived sizes that are not positive, or too large.
pub(super) fn check_sizes(sizes: &[(&str, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
        Some((name, size)) => {
            refuse!(
                InvalidConfig,
                "'{name}' leaves {size}, expected a positive number up to {LARGEST}"
            )
        }
        None => Ok(()),
    }
}

/// Refuses a part that does not divide the whole.
pub(super) fn check_divides(
    (part, divisor): (&str, i64),
    (whole, size): (&str, i64),
) -> Result<()> {
    if divisor <= 0 || size % divisor != 0 {
        refuse!(InvalidConfig, "'{part}' ({divisor}) does not divide '{whole}' ({size})");
    }
    Ok(())
}

/// The labels' names in the order of the logits: of `id2label`, else as many as `num_labels`, else two.
fn labels(config: &Value) -> Result<Vec<String>> {
    let names = match config.get("id2label") {
        None | Some(Value::Null) => {
            let count = within("num_labels", integer_or(config, "num_labels", 2)?, MOST_LABELS)?;
            return Ok((0..count).map(|id| format!("LABEL_{id}")).collect());
        }
        Some(names) => names,
    };
    let fits = || -> Option<Vec<String>> {
        let names = names.as_object()?;
        let name = |id: usize| Some(names.get(&id.to_string())?.as_str()?.to_owned());
        (0..names.len()).map(name).collect()
    };
    match fits() {
        Some(labels) => Ok(labels),
        None => refuse!(InvalidConfig, "'id2label' is {names}, expected names for 0, 1, 2 …"),
    }
}
