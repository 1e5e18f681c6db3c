//! Special tokens and chat templates, wherever the files of a tokenizer keep them.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::files::{self, TextFiles, TOKENIZER};

/// Those that every tokenizer may have, and that `config.json` may have as an id.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens by their names: `tokenizer_config.json` and `special_tokens_map.json`; for those that are in
/// neither the ids of `config.json` and `generation_config.json`, and what `tokenizer.json` puts around a text.
pub fn special_tokens(model: &TextFiles) -> Result<Map<String, Value>> {
    let config = model.json("tokenizer_config.json")?;
    let given = |config: &Value| -> Map<String, Value> {
        let more = config.get("extra_special_tokens").and_then(Value::as_object);
        let named =
            config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
        let texts = named.chain(more.into_iter().flatten());
        texts.filter_map(|(key, token)| Some((key.clone(), content(token)?.into()))).collect()
    };
    let mut tokens = given(&config);
    // As in transformers, the older file counts more, but nothing beside a list of the added tokens.
    let newer = config.get("added_tokens_decoder").is_some();
    for (key, token) in given(&model.json("special_tokens_map.json")?) {
        if !newer || config.get(&key).is_none() {
            tokens.insert(key, token);
        }
    }
    let is_open = |name: &&&str| !tokens.contains_key(**name) && config.get(**name).is_none();
    let open: Vec<&str> = NAMES.iter().filter(is_open).copied().collect();
    if open.iter().any(|name| ["bos_token", "eos_token"].contains(name)) {
        let files = configs(model)?;
        let tokenizer = model.json(TOKENIZER)?;
        for name in open {
            let id = ids_of(&files, &format!("{name}_id")).first().copied();
            let token = id.and_then(|id| token_of(&tokenizer, id));
            if let Some(token) = token.or_else(|| around(&tokenizer, name)) {
                tokens.insert(name.to_owned(), token.into());
            }
        }
    }
    Ok(tokens)
}

/// The chat templates by name. Files of their own count more than `tokenizer_config.json`, as in transformers.
pub fn chat_templates(model: &TextFiles) -> Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    let default = model.text("chat_template.jinja")?;
    templates.extend(default.map(|text| ("default".to_owned(), text)));
    for path in model.below("additional_chat_templates")? {
        if let (Some(name), true) =
            (path.file_stem(), path.extension().is_some_and(|end| end == "jinja"))
        {
            let text = files::text(&path)?;
            templates.extend(text.map(|text| (name.to_string_lossy().into_owned(), text)));
        }
    }
    for config in ["tokenizer_config.json", "chat_template.json"] {
        if templates.is_empty() {
            templates = named(model.json(config)?.get("chat_template"));
        }
    }
    Ok(templates)
}

/// The chat templates of a processor by name, of whose files the older ones count more, as in transformers; else those
/// of the tokenizer.
pub fn processor_templates(model: &TextFiles) -> Result<BTreeMap<String, String>> {
    for config in ["processor_config.json", "chat_template.json"] {
        let templates = named(model.json(config)?.get("chat_template"));
        if !templates.is_empty() {
            return Ok(templates);
        }
    }
    chat_templates(model)
}

/// One template, or several with names.
fn named(templates: Option<&Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| Some(value.as_str()?.to_owned());
    match templates {
        Some(Value::String(template)) => BTreeMap::from([("default".into(), template.clone())]),
        Some(Value::Array(all)) => {
            let one = |of: &Value| Some((text(of.get("name")?)?, text(of.get("template")?)?));
            all.iter().filter_map(one).collect()
        }
        Some(Value::Object(all)) => {
            all.iter().filter_map(|(name, of)| Some((name.clone(), text(of)?))).collect()
        }
        _ => BTreeMap::new(),
    }
}

/// The ids that texts end with: the tokenizer's first, then those of `config.json` and `generation_config.json`.
pub fn eos_ids(model: &TextFiles, tokenizer: &Tokenizer) -> Result<Vec<i64>> {
    let tokens = special_tokens(model)?;
    let own = tokens.get("eos_token").and_then(|token| tokenizer.token_to_id(token.as_str()?));
    let more = ids_of(&configs(model)?, "eos_token_id");
    Ok(own.map(i64::from).into_iter().chain(more).collect())
}

fn configs(model: &TextFiles) -> Result<[Value; 2]> {
    Ok([model.json("config.json")?, model.json("generation_config.json")?])
}

fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// An id or a list of ids, of a model or of its language model.
fn ids_of(files: &[Value], key: &str) -> Vec<i64> {
    let mut ids = Vec::new();
    for file in files {
        match file.get(key).or_else(|| file.get("text_config")?.get(key)) {
            Some(Value::Array(all)) => ids.extend(all.iter().filter_map(Value::as_i64)),
            Some(id) => ids.extend(id.as_i64()),
            None => {}
        }
    }
    ids.dedup();
    ids
}

fn token_of(tokenizer: &Value, id: i64) -> Option<String> {
    let mut added = tokenizer.get("added_tokens")?.as_array()?.iter();
    if let Some(token) = added.find(|token| token["id"] == id) {
        return Some(content(token)?.to_owned());
    }
    let mut vocabulary = tokenizer.get("model")?.get("vocab")?.as_object()?.iter();
    vocabulary.find(|(_, of)| **of == id).map(|(token, _)| token.clone())
}

/// The token that `tokenizer.json` puts in front of a text, or behind it.
fn around(tokenizer: &Value, name: &str) -> Option<String> {
    let processor = tokenizer.get("post_processor")?;
    let steps = processor.get("processors").and_then(Value::as_array);
    let mut steps = steps.map_or(vec![processor], |steps| steps.iter().collect()).into_iter();
    let pieces = steps.find_map(|step| step.get("single")?.as_array())?;
    let piece = match name {
        "bos_token" => pieces.first()?,
        "eos_token" => pieces.last()?,
        _ => return None,
    };
    Some(piece.get("SpecialToken")?.get("id")?.as_str()?.to_owned())
}
