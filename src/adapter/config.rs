//! PEFT's `LNTuningConfig`: ten fields, read from JSON or YAML, written byte for byte as PEFT does; and a recipe.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::adapter::recipe::Recipe;
use crate::adapter::task_type::{TaskType, TASK_TYPES};
use crate::error::{refusal, refuse, Result};
use crate::names::nearest::listed;
use crate::regular;
use crate::storage::unique_keys::{Strict, DUPLICATE};
use crate::storage::yaml;

const PEFT_TYPE: &str = "LN_TUNING";

/// The configuration of an adapter, mainly the modules that it tunes, in the format of PEFT's `LNTuningConfig`.
///
/// The fields have PEFT's names, defaults and JSON. `peft_type` is always `LN_TUNING` and therefore no field.
///
/// ```
/// use ln_tuning::LnTuningConfig;
/// let config = LnTuningConfig::default().target_modules(["ln_1", "ln_2"]).exclude_modules(["h.0.ln_1"]);
/// assert_eq!(LnTuningConfig::from_json(&config.to_json())?, config);
/// let same = LnTuningConfig::from_yaml("target_modules: [ln_1, ln_2]\nexclude_modules: [h.0.ln_1]")?;
/// assert_eq!(same, config);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "LNTuningConfig")]
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LnTuningConfig {
    /// The task of the model; `None` if PEFT's task wrappers do not apply.
    pub task_type: Option<TaskType>,
    /// PEFT's note about the class and library of the base model. Kept as read.
    pub auto_mapping: Option<Value>,
    /// The version of PEFT that wrote the file. Kept as read; for null, PEFT assumes its own version.
    pub peft_version: Option<String>,
    /// Name or directory of the base model.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base model.
    pub revision: Option<String>,
    /// True if the adapter is for inference only.
    pub inference_mode: bool,
    /// The modules to tune. `None`: those of the model type's table, or every recognised norm.
    pub target_modules: Option<Modules>,
    /// Modules that are not tuned although they match `target_modules`.
    pub exclude_modules: Option<Modules>,
    /// Other modules that are trained and saved as a whole, such as a classifier head.
    ///
    /// A string in a file is read as one name; PEFT iterates over its characters.
    pub modules_to_save: Option<Vec<String>>,
    /// A setting of the method's paper, in place of `target_modules`. PEFT has no such field: a saved adapter names the
    /// modules that it selected.
    pub recipe: Option<Recipe>,
}

/// A choice of modules by their paths: PEFT's "string or list".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Modules {
    /// A regular expression for the whole path, as in Python's `re.fullmatch`. What Python (3.11) refuses is refused;
    /// so are conditions on groups, names of characters, references to groups without regard to case, and repetitions
    /// of what may be empty in an atomic group or beside a reference.
    Pattern(String),
    /// Names: each matches a path that equals it or ends in `.name`.
    List(Vec<String>),
}

/// A configuration as read, and the unknown keys, which were left out.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedConfig {
    /// The configuration.
    pub config: LnTuningConfig,
    /// Keys that this crate does not know, sorted: the file may be from a newer PEFT.
    pub unknown_keys: Vec<String>,
}

impl LnTuningConfig {
    /// Tunes the modules of these names: each matches a path that equals it or ends in `.name`.
    pub fn target_modules<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.target_modules = Some(Modules::list(names));
        self
    }

    /// Tunes the modules whose whole path matches this regular expression (Python's `re.fullmatch`).
    pub fn target_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.target_modules = Some(Modules::Pattern(pattern.into()));
        self
    }

    /// Leaves out the modules of these names.
    pub fn exclude_modules<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.exclude_modules = Some(Modules::list(names));
        self
    }

    /// Leaves out the modules whose whole path matches this regular expression.
    pub fn exclude_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.exclude_modules = Some(Modules::Pattern(pattern.into()));
        self
    }

    /// Trains and saves these modules as a whole.
    pub fn modules_to_save<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.modules_to_save = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Tunes the modules of a setting of the method's paper.
    pub fn recipe(mut self, recipe: Recipe) -> Self {
        self.recipe = Some(recipe);
        self
    }

    /// Sets the task of the model.
    pub fn task_type(mut self, task_type: TaskType) -> Self {
        self.task_type = Some(task_type);
        self
    }

    /// Sets the name of the base model in saved files.
    pub fn base_model(mut self, name_or_path: impl Into<String>) -> Self {
        self.base_model_name_or_path = Some(name_or_path.into());
        self
    }

    /// Reads `adapter_config.json` text. Unknown keys are left out, with one warning on stderr that lists them.
    ///
    /// # Errors
    /// `InvalidConfig` for bad JSON, a wrong type or an invalid `task_type`; `DuplicateKey`; `WrongPeftType` for
    /// another method's configuration.
    pub fn from_json(text: &str) -> Result<Self> {
        Ok(parse(text, Format::Json, None)?.warn(None))
    }

    /// Reads the same fields from YAML. `peft_type` may be left out.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_yaml(text: &str) -> Result<Self> {
        Ok(parse(text, Format::Yaml, None)?.warn(None))
    }

    /// Reads a file: YAML if its name ends in `.yaml` or `.yml`, else JSON.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), naming the file; `MissingFile` or `Io` if it cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::parse_file(path)?.warn(Some(path)))
    }

    /// [`from_file`](Self::from_file), which returns the unknown keys instead of a warning on stderr.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn parse_file(path: impl AsRef<Path>) -> Result<ParsedConfig> {
        let path = path.as_ref();
        let text = regular::read_text(path)?;
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        parse(&text, if yaml { Format::Yaml } else { Format::Json }, Some(path))
    }

    /// The bytes that PEFT writes: two spaces, sorted keys, ASCII escapes, no newline at the end.
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"  ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        Value::Object(self.to_map())
            .serialize(&mut serializer)
            .expect("JSON values can be written to memory");
        escape_ascii(std::str::from_utf8(&text).expect("serde_json writes UTF-8"))
    }

    /// The same fields as YAML.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(&Value::Object(self.to_map()))
            .expect("JSON values can be written as YAML")
    }

    fn to_map(&self) -> Map<String, Value> {
        let list = |modules: &Option<Modules>| match modules {
            None => Value::Null,
            Some(Modules::Pattern(pattern)) => Value::from(pattern.as_str()),
            Some(Modules::List(names)) => Value::from(names.clone()),
        };
        let mut map = Map::new();
        map.insert("auto_mapping".into(), self.auto_mapping.clone().map_or(Value::Null, sorted));
        map.insert("base_model_name_or_path".into(), self.base_model_name_or_path.clone().into());
        map.insert("exclude_modules".into(), list(&self.exclude_modules));
        map.insert("inference_mode".into(), self.inference_mode.into());
        map.insert("modules_to_save".into(), self.modules_to_save.clone().into());
        map.insert("peft_type".into(), PEFT_TYPE.into());
        map.insert("peft_version".into(), self.peft_version.clone().into());
        if let Some(recipe) = self.recipe {
            map.insert("recipe".into(), recipe.name().into());
        }
        map.insert("revision".into(), self.revision.clone().into());
        map.insert("target_modules".into(), list(&self.target_modules));
        map.insert("task_type".into(), self.task_type.map(|task| task.to_string()).into());
        map
    }
}

impl Modules {
    pub(crate) fn list<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Modules::List(names.into_iter().map(Into::into).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Modules::Pattern(pattern) => pattern.is_empty(),
            Modules::List(names) => names.is_empty(),
        }
    }
}

impl ParsedConfig {
    fn warn(self, path: Option<&Path>) -> LnTuningConfig {
        if !self.unknown_keys.is_empty() {
            let place = path.map(|p| format!(" in '{}'", p.display())).unwrap_or_default();
            eprintln!(
                "warning: unknown keys{place} are ignored: {}. The file may be from a newer PEFT",
                listed(&self.unknown_keys)
            );
        }
        self.config
    }
}

#[derive(Clone, Copy)]
enum Format {
    Json,
    Yaml,
}

fn parse(text: &str, format: Format, path: Option<&Path>) -> Result<ParsedConfig> {
    let place = path.map(|p| format!("'{}': ", p.display())).unwrap_or_default();
    let invalid = |message: String, source: Box<dyn std::error::Error + Send + Sync>| {
        if source.to_string().contains(DUPLICATE) {
            return refusal!(DuplicateKey, "{place}{message}: {source}");
        }
        refusal!(InvalidConfig, "{place}{message}: {source}")
    };
    let map = match format {
        Format::Json => serde_json::from_str(text)
            .map_err(|e| invalid("not a valid JSON configuration".into(), e.into()))
            .map(|Strict(map)| map)?,
        Format::Yaml if text.trim().is_empty() => Map::new(),
        Format::Yaml => yaml::from_str(text)
            .map_err(|e| invalid("not a valid YAML configuration".into(), e.into()))
            .map(|Strict(map)| map)?,
    };
    read(map, format, &place)
}

fn read(mut map: Map<String, Value>, format: Format, place: &str) -> Result<ParsedConfig> {
    let invalid = |message: String| refusal!(InvalidConfig, "{place}{message}");
    let wrong = |key: &str, found: &Value, expected: &str| {
        invalid(format!("'{key}' is {}, expected {expected}", describe(found)))
    };
    match map.remove("peft_type") {
        Some(Value::String(peft_type)) if peft_type == PEFT_TYPE => {}
        Some(Value::String(other)) => {
            refuse!(
                WrongPeftType,
                "{place}peft_type is '{other}', expected '{PEFT_TYPE}': this configuration is for another method"
            );
        }
        None if matches!(format, Format::Yaml) => {}
        None => {
            return Err(invalid(format!("the key 'peft_type' is missing, expected '{PEFT_TYPE}'")))
        }
        Some(other) => {
            return Err(wrong("peft_type", &other, &format!("the string '{PEFT_TYPE}'")));
        }
    }
    // PEFT's own run-time settings, which PEFT drops too.
    map.remove("runtime_config");
    let mut take = |key: &str| map.remove(key).filter(|value| !value.is_null());
    let text = |key: &str, value: Option<Value>| match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(key, &other, "a string or null")),
    };
    let names = |key: &str, items: Vec<Value>| {
        let names = items.into_iter().map(|item| match item {
            Value::String(name) => Ok(name),
            other => {
                Err(invalid(format!("'{key}' holds {}, expected strings only", describe(&other))))
            }
        });
        names.collect::<Result<Vec<String>>>()
    };
    let modules = |key: &str, value: Option<Value>| match value {
        None => Ok(None),
        Some(Value::String(pattern)) => Ok(Some(Modules::Pattern(pattern))),
        Some(Value::Array(items)) => Ok(Some(Modules::List(names(key, items)?))),
        Some(other) => {
            Err(wrong(key, &other, "a string (regular expression), a list of names or null"))
        }
    };
    let config = LnTuningConfig {
        task_type: match text("task_type", take("task_type"))? {
            None => None,
            Some(task) => {
                Some(serde_json::from_value(Value::from(task.as_str())).map_err(|_| {
                    invalid(format!(
                        "'task_type' is '{task}', expected one of {}",
                        TASK_TYPES.join(", ")
                    ))
                })?)
            }
        },
        auto_mapping: match take("auto_mapping") {
            None => None,
            Some(mapping @ Value::Object(_)) => Some(mapping),
            Some(other) => return Err(wrong("auto_mapping", &other, "an object or null")),
        },
        peft_version: text("peft_version", take("peft_version"))?,
        base_model_name_or_path: text("base_model_name_or_path", take("base_model_name_or_path"))?,
        revision: text("revision", take("revision"))?,
        inference_mode: match take("inference_mode") {
            None => false,
            Some(Value::Bool(mode)) => mode,
            Some(other) => return Err(wrong("inference_mode", &other, "true or false")),
        },
        target_modules: modules("target_modules", take("target_modules"))?,
        exclude_modules: modules("exclude_modules", take("exclude_modules"))?,
        modules_to_save: match modules("modules_to_save", take("modules_to_save"))? {
            Some(Modules::Pattern(name)) => Some(vec![name]),
            Some(Modules::List(names)) => Some(names),
            None => None,
        },
        recipe: match text("recipe", take("recipe"))? {
            None => None,
            Some(name) => Some(name.parse().map_err(|e| invalid(format!("{e}")))?),
        },
    };
    if let Some(recipe) = config.recipe.filter(|_| config.target_modules.is_some()) {
        return Err(invalid(both(recipe)));
    }
    let mut unknown_keys: Vec<String> = map.into_iter().map(|(key, _)| key).collect();
    unknown_keys.sort();
    Ok(ParsedConfig { config, unknown_keys })
}

/// The words about a recipe beside `target_modules`.
pub(crate) fn both(recipe: Recipe) -> String {
    format!(
        "both 'recipe' ({recipe}) and 'target_modules' are set, which name the same: leave out one"
    )
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => format!("{other}"),
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        other => other,
    }
}

/// Escapes all characters beyond ASCII as `\uXXXX`, in surrogate pairs if necessary.
fn escape_ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}
