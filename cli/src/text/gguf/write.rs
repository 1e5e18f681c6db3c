//! The tokenizer of a model directory as the metadata of a GGUF file: merges of bytes only.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::gguf::{GgufWriter, MetadataArray, MetadataValue, ValueType};
use ln_tuning::regular;
use serde_json::Value;

use super::splits::Split;
use super::vocabulary::{CONTROL, USER_DEFINED};

/// The numbers of `ggml.token_type` for a word, and for a row of the embedding that no token has.
const NORMAL: i64 = 1;
const UNUSED: i64 = 5;

/// Sets the metadata of the tokenizer in a directory; `rows` is the number of rows that the embedding has.
///
/// # Errors
/// If there is no `tokenizer.json`, or one that is not of merges of bytes, or cuts a text as no rule of llama.cpp does.
pub fn set_words(writer: &mut GgufWriter, dir: &Path, rows: usize) -> Result<()> {
    let read = |name: &str| -> Result<Value> {
        let text = regular::read_text(&dir.join(name))?;
        serde_json::from_str(&text).with_context(|| format!("'{}'", dir.join(name).display()))
    };
    let tokenizer = read("tokenizer.json")?;
    let config = if dir.join("tokenizer_config.json").exists() {
        read("tokenizer_config.json")?
    } else {
        Value::Null
    };
    let words = Words { tokenizer: &tokenizer, config: &config };
    words.check().with_context(|| {
        format!(
            "the tokenizer in '{}' cannot become metadata of a GGUF file; llama.cpp's convert_hf_to_gguf.py may know it",
            dir.display()
        )
    })?;
    let (tokens, types) = words.tokens(rows)?;
    let id = |name: &str| -> Option<usize> {
        let token = config.get(name)?;
        let token = token.as_str().or_else(|| token.get("content")?.as_str())?;
        tokens.iter().position(|known| known == token)
    };
    writer.set("tokenizer.ggml.model", "gpt2")?;
    writer.set("tokenizer.ggml.pre", words.rule()?)?;
    for (key, name) in [
        ("bos_token_id", "bos_token"),
        ("eos_token_id", "eos_token"),
        ("unknown_token_id", "unk_token"),
        ("padding_token_id", "pad_token"),
    ] {
        if let Some(id) = id(name) {
            writer.set(&format!("tokenizer.ggml.{key}"), MetadataValue::U32(id as u32))?;
        }
    }
    let first = words.first_token().and_then(|token| tokens.iter().position(|own| *own == token));
    writer.set(
        "tokenizer.ggml.add_bos_token",
        MetadataValue::Bool(first.is_some() && first == id("bos_token")),
    )?;
    let texts = |all: Vec<String>| -> Result<MetadataArray> {
        let all: Vec<MetadataValue> = all.into_iter().map(MetadataValue::String).collect();
        Ok(MetadataArray::new(ValueType::String, &all)?)
    };
    let types: Vec<MetadataValue> =
        types.into_iter().map(|kind| MetadataValue::I32(kind as i32)).collect();
    writer.set("tokenizer.ggml.token_type", MetadataArray::new(ValueType::I32, &types)?)?;
    writer.set("tokenizer.ggml.merges", texts(words.merges()?)?)?;
    writer.set("tokenizer.ggml.tokens", texts(tokens)?)?;
    let beside = dir.join("chat_template.jinja");
    let template = config.get("chat_template").and_then(Value::as_str).map(str::to_owned);
    let template = if beside.exists() { Some(regular::read_text(&beside)?) } else { template };
    if let Some(template) = template {
        writer.set("tokenizer.chat_template", template.as_str())?;
    }
    Ok(())
}

/// The files of a tokenizer.
struct Words<'f> {
    tokenizer: &'f Value,
    config: &'f Value,
}

impl<'f> Words<'f> {
    fn get(&self, path: &str) -> Option<&'f Value> {
        self.tokenizer.pointer(path).filter(|value| !value.is_null())
    }

    fn text(&self, path: &str) -> Option<&'f str> {
        self.get(path)?.as_str()
    }

    fn check(&self) -> Result<()> {
        let model = self.text("/model/type").unwrap_or("missing");
        let decoder = self.text("/decoder/type").unwrap_or("missing");
        ensure!(
            model == "BPE" && decoder == "ByteLevel",
            "its model is {model} and its decoder {decoder}, expected BPE and ByteLevel (merges of bytes)"
        );
        for path in ["/model/byte_fallback", "/model/fuse_unk"] {
            ensure!(
                self.get(path).is_none_or(|value| value == &Value::Bool(false)),
                "'{path}' is true, expected false"
            );
        }
        for path in ["/model/continuing_subword_prefix", "/model/end_of_word_suffix"] {
            ensure!(self.text(path).is_none_or(str::is_empty), "'{path}' is not empty");
        }
        let normalizer = self.text("/normalizer/type");
        // llama.cpp takes texts as they are; most are in NFC.
        ensure!(
            matches!(normalizer, None | Some("NFC")),
            "its normalizer is {}, expected none or NFC",
            normalizer.unwrap_or_default()
        );
        Ok(())
    }

    /// The name of the rule that cuts a text into words.
    fn rule(&self) -> Result<&'static str> {
        let whole = self.get("/pre_tokenizer").context("it has no pre_tokenizer")?;
        let steps = match whole.get("pretokenizers").and_then(Value::as_array) {
            Some(steps) => steps.iter().collect(),
            None => vec![whole],
        };
        let mut patterns = Vec::new();
        for step in steps {
            let is = |key: &str| step.get(key) == Some(&Value::Bool(true));
            match step.get("type").and_then(Value::as_str).unwrap_or_default() {
                "Split" if step.get("behavior") == Some(&"Isolated".into()) && !is("invert") => {
                    let pattern = step.pointer("/pattern/Regex").and_then(Value::as_str);
                    patterns.push(pattern.context("a Split has no regular expression")?);
                }
                "Digits" if is("individual_digits") => patterns.push(r"\p{N}"),
                "ByteLevel" if !is("add_prefix_space") => {
                    // True unless it is said.
                    if step.get("use_regex") != Some(&Value::Bool(false)) {
                        patterns.push(super::splits::GPT2);
                    }
                }
                other => bail!("its pre_tokenizer has the step {other:?} ({step})"),
            }
        }
        let whole_words = self.get("/model/ignore_merges") == Some(&Value::Bool(true));
        Split::of(&patterns, whole_words).with_context(|| {
            format!("no rule of llama.cpp cuts a text as its pre_tokenizer does: {patterns:?}")
        })
    }

    /// Every token by its id, and the types.
    fn tokens(&self, rows: usize) -> Result<(Vec<String>, Vec<i64>)> {
        let vocabulary = self.get("/model/vocab").and_then(Value::as_object);
        let vocabulary = vocabulary.context("tokenizer.json has no '/model/vocab'")?;
        let mut tokens: Vec<Option<(String, i64)>> = vec![None; rows];
        let mut put = |id: Option<u64>, token: &str, kind: i64| -> Result<()> {
            let place = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
            let place = place.with_context(|| {
                format!("the token {token:?} has the id {id:?}, and the embedding has {rows} rows")
            })?;
            *place = Some((token.to_owned(), kind));
            Ok(())
        };
        for (token, id) in vocabulary {
            put(id.as_u64(), token, NORMAL)?;
        }
        for token in self.get("/added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let text = token.get("content").and_then(Value::as_str).unwrap_or_default();
            let special = token.get("special") == Some(&Value::Bool(true));
            let kind = if special { CONTROL } else { USER_DEFINED };
            put(token.get("id").and_then(Value::as_u64), text, kind)?;
        }
        let filled = tokens.into_iter().enumerate();
        let filled =
            filled.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)));
        Ok(filled.unzip())
    }

    fn merges(&self) -> Result<Vec<String>> {
        let merges = self.get("/model/merges").and_then(Value::as_array);
        let one = |merge: &Value| match merge {
            Value::String(pair) => Some(pair.clone()),
            pair => Some(format!("{} {}", pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
        };
        let merges = merges.and_then(|merges| merges.iter().map(one).collect());
        merges.context("tokenizer.json has no '/model/merges' of pairs")
    }

    /// The token that every text begins with.
    fn first_token(&self) -> Option<String> {
        let processor = self.get("/post_processor");
        let template = |processor: &Value| -> Option<String> {
            let first = processor.pointer("/single/0/SpecialToken/id")?;
            Some(first.as_str()?.to_owned())
        };
        let found = processor.and_then(|processor| {
            let several = processor.get("processors").and_then(Value::as_array);
            template(processor).or_else(|| several?.iter().find_map(template))
        });
        found.or_else(|| {
            let token = self.config.get("bos_token")?;
            let token = token.as_str().or_else(|| token.get("content")?.as_str())?;
            let adds = self.config.get("add_bos_token") == Some(&Value::Bool(true));
            (adds && processor.is_none()).then(|| token.to_owned())
        })
    }
}
