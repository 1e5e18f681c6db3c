//! The program `ln-tuning train --dry-run`: settings in YAML, chat templates with tokenizers, and rows of data.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::json;

use super::{model, Seeds, Target};
use crate::damage;

/// A directory with a model, its tokenizer and chat template, settings and data.
pub struct Program {
    seeds: Seeds,
    /// The files that are damaged.
    damaged: &'static [&'static str],
}

const ROWS: [&str; 7] = [
    "text.txt",
    "texts.jsonl",
    "chat.jsonl",
    "prompts.jsonl",
    "tools.jsonl",
    "labels.csv",
    "labels.jsonl",
];

impl Program {
    pub fn new(name: &str) -> Result<Self> {
        let mut seeds = Seeds::new()?;
        let dir = seeds.add("program");
        let (_, config) = model::configs().swap_remove(0);
        model::make(&dir.join("language"), &config)?;
        let (_, config) = model::configs().swap_remove(4);
        model::make(&dir.join("classifier"), &config)?;
        let words = "<unk> <s> </s> user assistant system the fox dog yes no good bad : . \\n";
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            words.split(' ').enumerate().map(|(id, word)| (word.to_owned(), json!(id))).collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        });
        for model in ["language", "classifier"] {
            let dir = dir.join(model);
            fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
            let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
            fs::write(dir.join("tokenizer_config.json"), config.to_string())?;
        }
        fs::write(dir.join("language/chat_template.jinja"), TEMPLATE)?;
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let chat = [
            message("system", "good fox"),
            message("user", "the dog"),
            message("assistant", "yes"),
        ];
        let lines = |rows: &[serde_json::Value]| {
            rows.iter().map(|row| format!("{row}\n")).collect::<String>()
        };
        let chats = json!({"messages": chat});
        let prompt = json!({"prompt": "the fox", "completion": "good dog"});
        let tool = json!({"type": "function", "function": {"name": "fox", "parameters": {"type": "object", "properties": {}}}});
        let tools = json!({"messages": chat, "tools": [tool]});
        let label = |text: &str, label: &str| json!({"text": text, "label": label});
        for (name, text) in [
            ("text.txt", "the fox\n\nthe good dog\n".to_owned()),
            ("texts.jsonl", lines(&[json!({"text": "the fox"}), json!({"text": "the dog"})])),
            ("chat.jsonl", lines(&[chats.clone(), chats])),
            ("prompts.jsonl", lines(&[prompt.clone(), prompt])),
            ("tools.jsonl", lines(&[tools])),
            ("labels.csv", "text,label\nthe fox,yes\n\"the, dog\",no\n".to_owned()),
            ("labels.jsonl", lines(&[label("the fox", "yes"), label("the dog", "no")])),
            ("train.yaml", SETTINGS.to_owned()),
        ] {
            fs::write(dir.join(name), text)?;
        }
        let damaged: &[&str] = match name {
            "settings" => &["train.yaml"],
            "chat" => &[
                "language/chat_template.jinja",
                "language/chat_template.jinja",
                "language/tokenizer_config.json",
                "language/tokenizer.json",
                "chat.jsonl",
            ],
            _ => &ROWS,
        };
        Ok(Program { seeds, damaged })
    }
}

impl Target for Program {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        self.seeds.copy(dir, rng)?;
        let name = damage::pick(rng, self.damaged).expect("some");
        for _ in 0..=rng.usize(..3) {
            damage::file(&dir.join(name), rng)?;
        }
        let data = match *name {
            "train.yaml" => *damage::pick(rng, &ROWS).expect("some"),
            name if name.starts_with("language/") => {
                *damage::pick(rng, &["chat.jsonl", "tools.jsonl"]).expect("some")
            }
            name => name,
        };
        Ok(fs::write(dir.join("data.name"), data)?)
    }

    fn run(&self, dir: &Path) -> Result<()> {
        let data = fs::read_to_string(dir.join("data.name"))?;
        let model = if data.starts_with("labels") { "classifier" } else { "language" };
        let path =
            |name: &str| dir.join(name).into_os_string().into_string().ok().context("a path");
        let set = |key: &str, value: &str| format!("{key}={value}");
        let args = [
            "ln-tuning".to_owned(),
            "train".to_owned(),
            path("train.yaml")?,
            "--dry-run".to_owned(),
            "--set".to_owned(),
            set("model", &path(model)?),
            "--set".to_owned(),
            set("data.train", &path(&data)?),
            "--set".to_owned(),
            set("out", &path("out")?),
            "--set".to_owned(),
            set("threads", "1"),
            "--set".to_owned(),
            set("device", "cpu"),
        ];
        ln_tuning_cli::run(args.map(OsString::from)).map(drop)
    }
}

const TEMPLATE: &str = "\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
{{- message['role'] + ': ' + message['content'] }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}
";

const SETTINGS: &str = "\
kind: auto
seed: 1
optimizer:
  lr: 0.001
  betas: [0.9, 0.999]
schedule:
  name: cosine
  warmup_ratio: 0.1
batch_size: 2
accumulation: 1
epochs: 2
clip_norm: 1.0
data:
  max_length: 32
adapter:
  target_modules: null
";
