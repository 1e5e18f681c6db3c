//! The task that a run is for: as it is set, or as the model and the data say.

use std::path::Path;

use anyhow::{anyhow, bail, Result};
use ln_tuning::models::{
    DecoderConfig, Dinov2Config, EncoderConfig, ImageTextToTextConfig, ModelConfig,
    TowerClassifierConfig, ViTConfig,
};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::regular;

use super::settings::TaskName;
use super::yaml::Given;
use crate::records::format::Format;
use crate::records::{Records, Row};

/// # Errors
/// If nothing says it, or the model says the one and the data the other.
pub fn task(given: &Given) -> Result<TaskName> {
    if let Some(name) = given.text("task") {
        let task = serde_json::from_value(name.into());
        let task = task.map_err(|error| anyhow!("'task' is {name}: {error}"))?;
        refuse_other_kind(name, given)?;
        return Ok(task);
    }
    let model = given.text("model").and_then(|model| of_model(Path::new(model)));
    let data = given.text("data.train").and_then(|path| of_data(Path::new(path), given));
    let absent = given.text("data.train").is_some_and(|path| !Path::new(path).exists());
    match (model, data) {
        // Reading it says so.
        (Some((task, _)), _) if absent => Ok(task),
        (Some((task, _)), Some((same, _))) if task == same => Ok(task),
        (Some((_, model)), Some((_, data))) => bail!(
            "the task is not clear: {model}, but {data}. Set 'task' to language or classifier"
        ),
        (Some((task, _)), None) | (None, Some((task, _))) => Ok(task),
        (None, None) if given.text("model").is_none() => {
            bail!("'model' is not set, expected a directory or a GGUF file")
        }
        (None, None) => bail!(
            "neither the model nor the data say which task this is: set 'task' to language or classifier"
        ),
    }
}

/// Some names of a task say what its data are.
fn refuse_other_kind(name: &str, given: &Given) -> Result<()> {
    let Some(path) = given.text("data.train").map(Path::new).filter(|path| path.exists()) else {
        return Ok(());
    };
    let format = given.text("data.format").unwrap_or("auto");
    let format = serde_json::from_value(format.into());
    let images =
        given.text("data.image").is_some() || format.is_ok_and(|f: Format| f.is_images(path));
    let expected = match (name, images) {
        ("image-classification", false) => {
            "a folder with a folder of images for each class (or set data.image, the column of pictures' paths)"
        }
        ("text-classification", true) => "rows with a text and a label",
        _ => return Ok(()),
    };
    bail!(
        "'task' is {name}, and '{}' is not {expected}: name other data, or leave 'task' out",
        path.display()
    )
}

/// The task, and why.
fn of_model(dir: &Path) -> Option<(TaskName, String)> {
    if dir.is_file() {
        return Some((TaskName::Language, format!("'{}' is a language model", dir.display())));
    }
    let config = match regular::read_text(&dir.join("config.json")) {
        Ok(text) => serde_json::from_str(&text).ok()?,
        Err(_) => ModelFiles::open(dir).ok()?.config().clone(),
    };
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let class = config["architectures"][0].as_str().unwrap_or_default();
    let about = |words: &str| format!("'{}' is {words} ({model_type})", dir.display());
    let is = |model_types: Vec<&str>| model_types.contains(&model_type);
    let language = ["ForCausalLM", "LMHeadModel"].iter().any(|end| class.ends_with(end));
    if class.ends_with("Classification") {
        Some((TaskName::Classifier, about("a classifier")))
    } else if language || is(DecoderConfig::model_types()) {
        Some((TaskName::Language, about("a language model")))
    } else if is(ImageTextToTextConfig::model_types()) {
        Some((TaskName::Language, about("a model of images and texts")))
    } else if is(EncoderConfig::model_types()) {
        Some((TaskName::Classifier, about("an encoder of texts")))
    } else if is([
        ViTConfig::model_types(),
        Dinov2Config::model_types(),
        TowerClassifierConfig::model_types(),
    ]
    .concat())
    {
        Some((TaskName::Classifier, about("a model of images")))
    } else {
        None
    }
}

fn of_data(path: &Path, given: &Given) -> Option<(TaskName, String)> {
    let about = |words: &str| format!("'{}' {words}", path.display());
    let format = given.text("data.format").unwrap_or("auto");
    let format: Format = serde_json::from_value(format.into()).ok()?;
    if format.is_images(path) {
        return Some((TaskName::Classifier, about("is a folder of classes")));
    }
    let absent = || {
        let named = format.of(&path.to_string_lossy(), b"").ok();
        named.filter(|_| !path.exists()).map(|format| (format, Row::new()))
    };
    let (format, row) = Records::first(path, format).or_else(absent)?;
    let label = given.text("data.label").unwrap_or("label");
    let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
    let plural = row.get("labels").is_some_and(|value| !value.is_array());
    let label =
        if label == "label" && !row.contains_key(label) && plural { "labels" } else { label };
    let shape = ["messages", "prompt", "conversations", "instruction", "chosen"];
    let named = given.has("data.columns");
    match format {
        Format::Text => Some((TaskName::Language, about("is a text"))),
        _ if named || shape.iter().any(|key| has(key)) => {
            Some((TaskName::Language, about("has prompts or messages")))
        }
        Format::Csv | Format::Tsv
            if row.contains_key(label)
                || row.is_empty()
                || given.has("data.format") && !row.contains_key("text") =>
        {
            Some((TaskName::Classifier, about("is a table with labels")))
        }
        _ if has(label) => Some((TaskName::Classifier, about("has rows with a label"))),
        _ => None,
    }
}
